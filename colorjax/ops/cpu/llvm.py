"""Kernels for CPUs: compiled with LLVM, run on all cores, called by XLA.

XLA's code for a loop on a CPU keeps nothing in registers from one iteration to the next. Where that is the bottleneck,
a kernel is written with llvmlite (`Emitter`) and compiled for this processor when it is first traced. Sizes such as an
image's height are read when the kernel runs, so there is one kernel for each kind of layer, however many sizes come.

XLA calls a kernel through its foreign function interface. A kernel is neither divided over devices nor exported.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence

import jax
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir

from colorjax.ops.cpu.cores import usable_cores
from colorjax.ops.cpu.emitter import INT, INT32, POINTER, Builder, Emitter, Value, allocate, lanes, processor_features

Emit = Callable[..., None]
"""Writes a kernel: `emit(emitter, item, *sizes, *arrays)`, with pointers to the operands and the results."""


def call(
    name: str,
    emit: Emit,
    *,
    items: int,
    sizes: Sequence[int],
    operands: Sequence[jax.Array],
    results: Sequence[tuple[int, ...]],
) -> list[jax.Array]:
    """Runs a kernel on every item, on all cores.

    Args:
        name: of the kernel. What it emits must depend on nothing else, except for the processor.
        emit: writes the code for one item, an integer below `items`. Items run in any order, several at a time.
        items: how many items there are.
        sizes: integers below 2^31 that the code reads when it runs.
        operands: float32.
        results: the shapes of the results, which the items fill.

    Returns:
        The results, float32.

    Raises:
        RuntimeError: LLVM does not know this processor.
        jax.errors.JaxRuntimeError: this jaxlib's interface is another than the one that is mirrored here.
    """
    target = f"colorjax_{name}_{lanes()}"
    with _building:
        if target not in _engines:
            engine = build(emit, len(sizes), len(operands) + len(results))
            function = ctypes.CFUNCTYPE(ctypes.c_void_p)(engine.get_function_address("handler"))
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(function), platform="cpu")
            _engines[target] = engine
    kinds = [jax.ShapeDtypeStruct(shape, np.float32) for shape in results]
    numbers = np.array([items, *sizes], np.int32)
    return list(jax.ffi.ffi_call(target, kinds, vmap_method="sequential")(numbers, *operands))


_engines: dict[str, llvm.ExecutionEngine] = {}
"""They own the kernels' code, which XLA may call as long as the process lives."""
_building = threading.Lock()


def check() -> None:
    """Builds and registers a small kernel. Raises as `call` does if no kernel can run in this process.

    JAX must have its backend: without one it would only take note of the kernel, and if XLA refuses that later, no CPU
    is left.
    """

    def copy(emitter: Emitter, item: Value, operand: Value, result: Value) -> None:
        index = emitter.index((item, lanes()))
        emitter.store(emitter.load(operand, index), result, index)

    shape = jax.ShapeDtypeStruct((lanes(),), np.float32)
    jax.eval_shape(lambda x: call("copy", copy, items=1, sizes=[], operands=[x], results=[x.shape]), shape)


def build(emit: Emit, sizes: int, arrays: int) -> llvm.ExecutionEngine:
    """Compiles a kernel of so many sizes and arrays; its function `handler` is an XLA_FFI_Handler."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    item = _item(module, emit, sizes, arrays)
    _handler(module, _worker(module, item, sizes, arrays), arrays)
    features = processor_features()
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


def _item(module: ir.Module, emit: Emit, sizes: int, arrays: int) -> ir.Function:
    """void item(i64 number, i64 for each size, ptr for each array): what `emit` writes."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT] * (1 + sizes) + [POINTER] * arrays), "item")
    for array in function.args[1 + sizes :]:
        array.add_attribute("noalias")
    emitter = Emitter(function)
    emit(emitter, *function.args)
    emitter.builder.ret_void()
    return function


_WORK = ir.LiteralStructType([POINTER, INT])
"""Pointers to the numbers (items and sizes, int32) and to the arrays; and the next item."""


def _number(builder: Builder, numbers: Value, index: int) -> Value:
    return builder.sext(builder.load(builder.gep(numbers, [INT(index)], source_etype=INT32), typ=INT32), INT)


def _pointer(builder: Builder, pointers: Value, index: int) -> Value:
    return builder.load(builder.gep(pointers, [INT(index)], source_etype=POINTER), typ=POINTER)


def _worker(module: ir.Module, item: ir.Function, sizes: int, arrays: int) -> ir.Function:
    """ptr worker(ptr work): takes items until none is left."""
    function = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), "worker")
    builder: Builder = ir.IRBuilder(function.append_basic_block())
    (work,) = function.args
    pointers = builder.load(_field(builder, work, _WORK, 0), typ=POINTER)
    items, *known = (_number(builder, _pointer(builder, pointers, 0), i) for i in range(1 + sizes))
    known += [_pointer(builder, pointers, 1 + i) for i in range(arrays)]
    head, body, end = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    number = builder.atomic_rmw("add", _field(builder, work, _WORK, 1), INT(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", number, items), body, end)
    builder.position_at_end(body)
    builder.call(item, [number, *known])
    builder.branch(head)
    builder.position_at_end(end)
    builder.ret(_NULL)
    return function


# XLA's interface, as jaxlib's include/xla/ffi/api/c_api.h declares it. Structures only grow at their ends.
_VERSION = 0, 3
"""The oldest version with all that is used here: jaxlib 0.10's. XLA refuses a kernel if it no longer supports it."""
_NULL = ir.Constant(POINTER, None)
# XLA_FFI_InternalExtension, …_Api_Version, …_Metadata, …_Metadata_Extension, …_Args (and …_Rets), and the first fields
# of …_Buffer and …_CallFrame.
_EXTENSION = ir.LiteralStructType([INT, INT32, POINTER])
_ASKS_FOR_METADATA = 1
_API_VERSION = ir.LiteralStructType([INT, POINTER, INT32, INT32])
_METADATA = ir.LiteralStructType([INT, _API_VERSION, INT32, INT])
_METADATA_EXTENSION = ir.LiteralStructType([_EXTENSION, POINTER])
_BUFFER = ir.LiteralStructType([INT, POINTER, INT32, POINTER])
_BUFFERS = ir.LiteralStructType([INT, POINTER, INT, POINTER, POINTER])
_FRAME = ir.LiteralStructType([INT, POINTER, POINTER, POINTER, INT32, _BUFFERS, _BUFFERS])
_ARGS, _RETS = 5, 6


def _field(builder: Builder, pointer: ir.Value, structure: ir.Type, *path: int) -> ir.Value:
    return builder.gep(pointer, [INT32(i) for i in (0, *path)], source_etype=structure)


def _handler(module: ir.Module, worker: ir.Function, arrays: int) -> None:
    """ptr handler(ptr frame): what XLA calls, an XLA_FFI_Handler."""
    function = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), "handler")
    emitter = Emitter(function)
    builder = emitter.builder
    (frame,) = function.args
    extension = builder.load(_field(builder, frame, _FRAME, 1), typ=POINTER)
    with builder.if_then(builder.icmp_unsigned("!=", extension, _NULL)):
        kind = builder.load(_field(builder, extension, _EXTENSION, 1), typ=INT32)
        with builder.if_then(builder.icmp_unsigned("==", kind, INT32(_ASKS_FOR_METADATA))):
            _tell_metadata(builder, extension)
            builder.ret(_NULL)
    # The operands' addresses and then the results'; the first operand holds the numbers.
    with builder.goto_entry_block():
        pointers, work = allocate(builder, ir.ArrayType(POINTER, 1 + arrays)), allocate(builder, _WORK)
    filled = emitter.variable(INT(0))
    for part in (_ARGS, _RETS):
        buffers = builder.load(_field(builder, frame, _FRAME, part, 4), typ=POINTER)
        with emitter.loop(0, builder.load(_field(builder, frame, _FRAME, part, 2), typ=INT)) as i:
            buffer = builder.load(builder.gep(buffers, [i], source_etype=POINTER), typ=POINTER)
            array = builder.load(_field(builder, buffer, _BUFFER, 3), typ=POINTER)
            builder.store(array, builder.gep(pointers, [filled.value], source_etype=POINTER))
            filled.value = builder.add(filled.value, INT(1))
    builder.store(pointers, _field(builder, work, _WORK, 0))
    builder.store(INT(0), _field(builder, work, _WORK, 1))
    items = _number(builder, _pointer(builder, pointers, 0), 0)
    _run_on_all_cores(emitter, worker, work, items)
    builder.ret(_NULL)


def _tell_metadata(builder: Builder, extension: ir.Value) -> None:
    """Answers XLA, which asks before it calls a handler for its interface's version, its traits and its state."""
    metadata = builder.load(_field(builder, extension, _METADATA_EXTENSION, 1), typ=POINTER)
    for field, number in zip((2, 3), _VERSION, strict=True):
        builder.store(INT32(number), _field(builder, metadata, _METADATA, 1, field))
    builder.store(INT32(0), _field(builder, metadata, _METADATA, 2))
    builder.store(INT(0), _field(builder, metadata, _METADATA, 3))


def _run_on_all_cores(emitter: Emitter, worker: ir.Function, work: ir.Value, items: ir.Value) -> None:
    """Calls the worker in this thread and in one for each other core, at most one for each item, and waits for all."""
    builder = emitter.builder
    create = ir.FunctionType(INT32, [POINTER] * 4)
    create = ir.Function(builder.module, create, "pthread_create")
    join = ir.Function(builder.module, ir.FunctionType(INT32, [INT, POINTER]), "pthread_join")
    most = usable_cores() - 1
    with builder.goto_entry_block():
        threads = allocate(builder, ir.ArrayType(INT, max(most, 1)))
    started = emitter.variable(INT(0))
    with emitter.loop(1, emitter.minimum(items, most + 1)):
        thread = builder.gep(threads, [started.value], source_etype=INT)
        failure = builder.call(create, [thread, _NULL, worker, work])
        # If a thread cannot be had, the others do its share.
        success = builder.zext(builder.icmp_signed("==", failure, INT32(0)), INT)
        started.value = builder.add(started.value, success)
    builder.call(worker, [work])
    with emitter.loop(0, started.value) as i:
        thread = builder.load(builder.gep(threads, [i], source_etype=INT), typ=INT)
        builder.call(join, [thread, _NULL])
