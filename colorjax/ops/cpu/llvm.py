"""Functions written as LLVM code, as operations of XLA's programs on CPUs: vectors, cores, and how XLA calls them.

What XLA makes of a loop on a CPU keeps nothing in registers from one turn to the next. Where that is what costs, a
kernel is emitted with llvmlite when it is first traced, for the shapes and the processor at hand.

XLA calls it by its foreign function interface, whose structures (jaxlib's include/xla/ffi/api/c_api.h) are mirrored
below; they only ever grow at their ends. XLA neither divides a kernel over devices nor exports it.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir

INT = ir.IntType(64)
_INT32 = ir.IntType(32)
_FLOAT = ir.FloatType()
_POINTER = ir.PointerType()

Value = ir.Value
Integer = ir.Value | int
Builder = Any  # ir.IRBuilder, whose decorators hide its methods' types from a checker


@functools.cache
def lanes() -> int:
    """How many float32 a vector register of this processor holds."""
    features = _features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


def _features() -> llvm.FeatureMap:
    try:
        return llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell them of every kind of processor
        return llvm.FeatureMap()


class Emitter:
    """Writes a function's code: what llvmlite's builder has, for vectors of `lanes()` float32.

    Attributes:
        builder: llvmlite's, where the code goes on.
        vector: the type of a vector.
    """

    def __init__(self, function: ir.Function) -> None:
        self.builder: Builder = ir.IRBuilder(function.append_basic_block())
        self.vector = ir.VectorType(_FLOAT, lanes())
        self._whole = ir.VectorType(_INT32, lanes())

    def constant(self, value: float) -> ir.Constant:
        """A vector of one number."""
        return ir.Constant(self.vector, [float(np.float32(value))] * lanes())

    def variable(self, value: ir.Value) -> "Variable":
        """What may be given another value later, in a loop or a branch; LLVM keeps it in a register."""
        return Variable(self.builder, value)

    def scratch(self, length: int) -> ir.Value:
        """A pointer to so many float32 of the function's own."""
        with self.builder.goto_entry_block():
            return _allocated(self.builder, ir.ArrayType(_FLOAT, length))

    @contextlib.contextmanager
    def loop(self, start: Integer, stop: Integer, step: int = 1) -> Iterator[ir.Value]:
        """for i in range(start, stop, step)."""
        builder = self.builder
        index = self.variable(_integer(start))
        head, body, end = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        builder.cbranch(builder.icmp_signed("<", index.value, _integer(stop)), body, end)
        builder.position_at_end(body)
        yield index.value
        index.value = builder.add(index.value, INT(step))
        builder.branch(head)
        builder.position_at_end(end)

    def minimum(self, first: ir.Value, second: Integer) -> ir.Value:
        """Of two integers."""
        second = _integer(second)
        return self.builder.select(self.builder.icmp_signed("<", first, second), first, second)

    def maximum(self, first: ir.Value, second: Integer) -> ir.Value:
        """Of two integers."""
        second = _integer(second)
        return self.builder.select(self.builder.icmp_signed(">", first, second), first, second)

    def index(self, *digits: tuple[Integer, int]) -> ir.Value:
        """Σ number · stride."""
        total: ir.Value = INT(0)
        for number, stride in digits:
            total = self.builder.add(total, self.builder.mul(_integer(number), INT(stride)))
        return total

    def address(self, array: ir.Value, index: Integer) -> ir.Value:
        """Of the float32 with that index."""
        return self.builder.gep(array, [_integer(index)], source_etype=_FLOAT)

    def load(self, array: ir.Value, index: Integer) -> ir.Value:
        """A vector from memory."""
        return self.builder.load(self.address(array, index), align=4, typ=self.vector)

    def load_repeated(self, array: ir.Value, index: Integer, count: int) -> ir.Value:
        """A vector of so many neighboring numbers from memory, again and again: `lanes()` of them, or a divisor."""
        if count >= lanes():
            return self.load(array, index)
        part = self.builder.load(self.address(array, index), align=4, typ=ir.VectorType(_FLOAT, count))
        return self._shuffled(part, [i % count for i in range(lanes())])

    def store(self, vector: ir.Value, array: ir.Value, index: Integer) -> None:
        """A vector into memory."""
        self.builder.store(vector, self.address(array, index), align=4)

    def spread(self, array: ir.Value, index: Integer) -> ir.Value:
        """A vector of one number from memory."""
        return self.load_repeated(array, index, 1)

    def store_sums(self, vector: ir.Value, array: ir.Value, index: Integer, count: int) -> None:
        """The sums over a vector's numbers that are so many apart, a divisor of `lanes()`, into memory."""
        width = lanes()
        while width > count:
            width //= 2
            halves = (self._shuffled(vector, range(start, start + width)) for start in (0, width))
            vector = self.builder.fadd(*halves)
        self.store(vector, array, index)

    def _shuffled(self, vector: ir.Value, places: Iterable[int]) -> ir.Value:
        places = list(places)
        return self.builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INT32, len(places)), places))

    def multiply_add(self, first: ir.Value, second: ir.Value, third: ir.Value) -> ir.Value:
        """first · second + third, in one instruction where the processor has it."""
        module, name = self.builder.module, f"llvm.fmuladd.v{lanes()}f32"
        known = module.globals.get(name)
        function = known or ir.Function(module, ir.FunctionType(self.vector, [self.vector] * 3), name)
        return self.builder.call(function, [first, second, third])

    def at_most(self, vector: ir.Value, limit: float) -> ir.Value:
        """The smaller of each number and the limit; NaN stays."""
        over = self.builder.fcmp_ordered(">", vector, self.constant(limit))
        return self.builder.select(over, self.constant(limit), vector)

    def any_above(self, vector: ir.Value, limit: float) -> ir.Value:
        """Whether any number is: a bit."""
        bits = ir.IntType(lanes())
        over = self.builder.fcmp_ordered(">", vector, self.constant(limit))
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(over, bits), bits(0))

    def exp2(self, vector: ir.Value) -> ir.Value:
        """2^x - 2^-64, of x up to 127; of what is below -64 it is 0, and NaN stays.

        So numbers are either 0 or far from the least that float32 has. Those few are slow, and some threads round them
        to 0 where others do not.
        """
        builder = self.builder
        under = builder.fcmp_ordered("<", vector, self.constant(_LEAST))
        vector = builder.select(under, self.constant(_LEAST), vector)
        # Above 1.5 · 2^23 a float32 has no fraction, so the sum's last bits are the nearest integer.
        shift = self.constant(1.5 * 2**23)
        shifted = builder.fadd(vector, shift)
        fraction = builder.fsub(vector, builder.fsub(shifted, shift))
        coefficients = _exp2_polynomial()
        power = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            power = self.multiply_add(power, fraction, self.constant(coefficient))
        exponent = builder.shl(builder.bitcast(shifted, self._whole), ir.Constant(self._whole, [23] * lanes()))
        power = builder.bitcast(builder.add(builder.bitcast(power, self._whole), exponent), self.vector)
        return builder.fsub(power, self.constant(coefficients[0] * 2.0**_LEAST))


class Variable:
    """A place for values of one type; see `Emitter.variable`."""

    def __init__(self, builder: Builder, value: Any) -> None:
        self._builder, self._type = builder, value.type
        with builder.goto_entry_block():
            self._place = _allocated(builder, value.type)
        self.value = value

    @property
    def value(self) -> ir.Value:
        """What it holds where the code goes on."""
        return self._builder.load(self._place, typ=self._type)

    @value.setter
    def value(self, value: ir.Value) -> None:
        self._builder.store(value, self._place)


def _allocated(builder: Builder, kind: ir.Type) -> ir.Value:
    place = builder.alloca(kind)
    place.type = _POINTER  # and not one that knows what it points at, of which llvmlite has no other
    return place


def _integer(value: Integer) -> ir.Value:
    return INT(value) if isinstance(value, int) else value


_LEAST = -64
"""The exponent of 2 from which on downwards a power is 0."""


@functools.cache
def _exp2_polynomial() -> np.ndarray:
    """2^x on [-1/2, 1/2] within 1.1 · 10^-7, lowest power first: interpolated at Chebyshev's nodes."""
    found = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
    return found.convert(kind=np.polynomial.Polynomial).coef


Emit = Callable[..., None]
"""Writes a kernel: `emit(emitter, item, *arrays)`, with pointers to the operands and the results."""


def call(
    name: str, emit: Emit, *, items: int, operands: Sequence[jax.Array], results: Sequence[tuple[int, ...]]
) -> list[jax.Array]:
    """Runs a kernel on every item, on all cores.

    Args:
        name: of the kernel. What it emits must be a function of it, of the shapes, and of the processor.
        emit: writes the code for one item, an integer below `items`. Items run in any order, several at a time.
        items: how many there are.
        operands: float32.
        results: the shapes of the results, which the items fill.

    Returns:
        The results, float32.
    """
    shapes = [*(x.shape for x in operands), *results]
    target = "_".join([f"colorjax_{name}_{lanes()}_{items}", *("x".join(map(str, shape)) for shape in shapes)])
    with _building:
        if target not in _engines:
            _engines[target] = _build(emit, items, len(operands), len(results))
            function = ctypes.CFUNCTYPE(ctypes.c_void_p)(_engines[target].get_function_address("handler"))
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(function), platform="cpu")
    kinds = [jax.ShapeDtypeStruct(shape, np.float32) for shape in results]
    return list(jax.ffi.ffi_call(target, kinds, vmap_method="sequential")(*operands))


_engines: dict[str, llvm.ExecutionEngine] = {}  # the code is theirs, so they stay
_building = threading.Lock()


def _build(emit: Emit, items: int, operands: int, results: int) -> llvm.ExecutionEngine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    _handler(module, _worker(module, _item(module, emit, operands + results), items), items, operands, results)
    features = _features()
    if lanes() == 16:
        features["prefer-256-bit"] = False  # some processors' tuning, which would halve the vectors
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        opt=3, cpu=llvm.get_host_cpu_name(), features=features.flatten()
    )
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(compiled, builder)
    engine = llvm.create_mcjit_compiler(compiled, machine)
    engine.finalize_object()
    return engine


def _item(module: ir.Module, emit: Emit, arrays: int) -> ir.Function:
    """void item(i64 number, ptr each array): the kernel's own code."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT] + [_POINTER] * arrays), "item")
    for array in function.args[1:]:
        array.add_attribute("noalias")
    emitter = Emitter(function)
    emit(emitter, *function.args)
    emitter.builder.ret_void()
    return function


_WORK = ir.LiteralStructType([_POINTER, INT])  # the arrays, and the next item


def _worker(module: ir.Module, item: ir.Function, items: int) -> ir.Function:
    """ptr worker(ptr work): does items until there are none."""
    function = ir.Function(module, ir.FunctionType(_POINTER, [_POINTER]), "worker")
    builder: Builder = ir.IRBuilder(function.append_basic_block())
    (work,) = function.args
    pointers = builder.load(_field(builder, work, _WORK, 0), typ=_POINTER)
    arrays = [
        builder.load(builder.gep(pointers, [INT(i)], source_etype=_POINTER), typ=_POINTER)
        for i in range(len(item.args) - 1)
    ]
    turn, body, end = (builder.append_basic_block() for _ in range(3))
    builder.branch(turn)
    builder.position_at_end(turn)
    number = builder.atomic_rmw("add", _field(builder, work, _WORK, 1), INT(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", number, INT(items)), body, end)
    builder.position_at_end(body)
    builder.call(item, [number, *arrays])
    builder.branch(turn)
    builder.position_at_end(end)
    builder.ret(_NULL)
    return function


_NULL = ir.Constant(_POINTER, None)
# XLA_FFI_InternalExtension, …_Api_Version, …_Metadata, …_Metadata_Extension, …_Args (and …_Rets), and the heads of
# …_Api, …_Buffer and …_CallFrame.
_EXTENSION = ir.LiteralStructType([INT, _INT32, _POINTER])
_ASKS_FOR_METADATA = 1
_VERSION = ir.LiteralStructType([INT, _POINTER, _INT32, _INT32])
_METADATA = ir.LiteralStructType([INT, _VERSION, _INT32, INT])
_METADATA_EXTENSION = ir.LiteralStructType([_EXTENSION, _POINTER])
_API = ir.LiteralStructType([INT, _POINTER, _VERSION])
_BUFFER = ir.LiteralStructType([INT, _POINTER, _INT32, _POINTER])
_BUFFERS = ir.LiteralStructType([INT, _POINTER, INT, _POINTER, _POINTER])
_FRAME = ir.LiteralStructType([INT, _POINTER, _POINTER, _POINTER, _INT32, _BUFFERS, _BUFFERS])


def _field(builder: Builder, pointer: ir.Value, structure: ir.Type, *path: int) -> ir.Value:
    return builder.gep(pointer, [_INT32(i) for i in (0, *path)], source_etype=structure)


def _handler(module: ir.Module, worker: ir.Function, items: int, operands: int, results: int) -> None:
    """ptr handler(ptr frame): what XLA calls, XLA_FFI_Handler. Every core's thread is a worker."""
    function = ir.Function(module, ir.FunctionType(_POINTER, [_POINTER]), "handler")
    builder: Builder = ir.IRBuilder(function.append_basic_block())
    (frame,) = function.args
    extension = builder.load(_field(builder, frame, _FRAME, 1), typ=_POINTER)
    with builder.if_then(builder.icmp_unsigned("!=", extension, _NULL)):
        kind = builder.load(_field(builder, extension, _EXTENSION, 1), typ=_INT32)
        with builder.if_then(builder.icmp_unsigned("==", kind, _INT32(_ASKS_FOR_METADATA))):
            _tell_metadata(builder, frame, extension)
            builder.ret(_NULL)
    pointers = _allocated(builder, ir.ArrayType(_POINTER, operands + results))
    sources = [(5, i) for i in range(operands)] + [(6, i) for i in range(results)]
    for place, (part, number) in enumerate(sources):
        buffers = builder.load(_field(builder, frame, _FRAME, part, 4), typ=_POINTER)
        buffer = builder.load(builder.gep(buffers, [INT(number)], source_etype=_POINTER), typ=_POINTER)
        array = builder.load(_field(builder, buffer, _BUFFER, 3), typ=_POINTER)
        builder.store(array, builder.gep(pointers, [INT(place)], source_etype=_POINTER))
    work = _allocated(builder, _WORK)
    builder.store(pointers, _field(builder, work, _WORK, 0))
    builder.store(INT(0), _field(builder, work, _WORK, 1))
    _on_all_cores(builder, worker, work, most=items)
    builder.ret(_NULL)


def _tell_metadata(builder: Builder, frame: ir.Value, extension: ir.Value) -> None:
    """What XLA asks before it calls a handler: of which version it is (the one that asks), and for traits and state."""
    api = builder.load(_field(builder, frame, _FRAME, 2), typ=_POINTER)
    metadata = builder.load(_field(builder, extension, _METADATA_EXTENSION, 1), typ=_POINTER)
    for part in (2, 3):
        version = builder.load(_field(builder, api, _API, 2, part), typ=_INT32)
        builder.store(version, _field(builder, metadata, _METADATA, 1, part))
    builder.store(_INT32(0), _field(builder, metadata, _METADATA, 2))
    builder.store(INT(0), _field(builder, metadata, _METADATA, 3))


def _on_all_cores(builder: Builder, worker: ir.Function, work: ir.Value, *, most: int) -> None:
    """Calls the worker on a thread for each other core, and on this one, and waits for all."""
    create = ir.FunctionType(_INT32, [_POINTER] * 4)
    create = ir.Function(builder.module, create, "pthread_create")
    join = ir.Function(builder.module, ir.FunctionType(_INT32, [INT, _POINTER]), "pthread_join")
    helpers = min(_cores(), most) - 1
    threads = [_allocated(builder, INT) for _ in range(helpers)]
    # A thread that cannot be had leaves its share to the others.
    failed = [builder.call(create, [thread, _NULL, worker, work]) for thread in threads]
    builder.call(worker, [work])
    for thread, failure in zip(threads, failed, strict=True):
        with builder.if_then(builder.icmp_signed("==", failure, _INT32(0))):
            builder.call(join, [builder.load(thread, typ=INT), _NULL])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
