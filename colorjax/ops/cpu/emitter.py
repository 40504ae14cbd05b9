"""Writes the code of a kernel: loops, vectors of float32 and their arithmetic, as LLVM instructions."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir

INT = ir.IntType(64)
INT32 = ir.IntType(32)
POINTER = ir.PointerType()
_FLOAT = ir.FloatType()

Value = ir.Value
Integer = ir.Value | int
Builder = Any  # ir.IRBuilder, whose decorators hide its methods' types from a type checker


@functools.cache
def lanes() -> int:
    """How many float32 a vector register of this processor holds."""
    features = processor_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


def processor_features() -> llvm.FeatureMap:
    """This processor's features; empty if LLVM does not know them."""
    try:
        return llvm.get_host_cpu_features()
    except RuntimeError:
        return llvm.FeatureMap()


class Emitter:
    """Writes the code of one function: llvmlite's builder, and more for vectors of `lanes()` float32.

    Attributes:
        builder: llvmlite's builder.
        vector: the type of a vector.
    """

    def __init__(self, function: ir.Function) -> None:
        self.builder: Builder = ir.IRBuilder(function.append_basic_block())
        self.vector = ir.VectorType(_FLOAT, lanes())
        self._int_vector = ir.VectorType(INT32, lanes())

    def constant(self, value: float) -> ir.Constant:
        """A vector that holds one number in every lane."""
        return ir.Constant(self.vector, [float(np.float32(value))] * lanes())

    def variable(self, value: ir.Value) -> "Variable":
        """A variable that loops and branches may assign to; LLVM keeps it in a register."""
        return Variable(self.builder, value)

    def scratch(self, length: int) -> ir.Value:
        """A pointer to `length` float32 on the function's stack."""
        with self.builder.goto_entry_block():
            return allocate(self.builder, ir.ArrayType(_FLOAT, length))

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
        """The smaller of two integers."""
        second = _integer(second)
        return self.builder.select(self.builder.icmp_signed("<", first, second), first, second)

    def maximum(self, first: ir.Value, second: Integer) -> ir.Value:
        """The larger of two integers."""
        second = _integer(second)
        return self.builder.select(self.builder.icmp_signed(">", first, second), first, second)

    def index(self, *terms: tuple[Integer, Integer]) -> ir.Value:
        """Σ number · stride."""
        total: ir.Value = INT(0)
        for number, stride in terms:
            total = self.builder.add(total, self.builder.mul(_integer(number), _integer(stride)))
        return total

    def address(self, array: ir.Value, index: Integer) -> ir.Value:
        """The address of a float32 in an array."""
        return self.builder.gep(array, [_integer(index)], source_etype=_FLOAT)

    def load(self, array: ir.Value, index: Integer) -> ir.Value:
        """Loads a vector."""
        return self.builder.load(self.address(array, index), align=4, typ=self.vector)

    def load_repeated(self, array: ir.Value, index: Integer, count: int) -> ir.Value:
        """Loads `count` neighboring numbers and repeats them to fill a vector; at most `lanes()` count."""
        if count >= lanes():
            return self.load(array, index)
        part = self.builder.load(self.address(array, index), align=4, typ=ir.VectorType(_FLOAT, count))
        return self._shuffle(part, [i % count for i in range(lanes())])

    def broadcast(self, array: ir.Value, index: Integer) -> ir.Value:
        """Loads one number into every lane of a vector."""
        return self.load_repeated(array, index, 1)

    def store(self, vector: ir.Value, array: ir.Value, index: Integer) -> None:
        """Stores a vector."""
        self.builder.store(vector, self.address(array, index), align=4)

    def store_sums(self, vector: ir.Value, array: ir.Value, index: Integer, count: int) -> None:
        """Adds up the lanes that are `count` apart, a divisor of `lanes()`, and stores the `count` sums."""
        width = lanes()
        while width > count:
            width //= 2
            halves = (self._shuffle(vector, range(start, start + width)) for start in (0, width))
            vector = self.builder.fadd(*halves)
        self.store(vector, array, index)

    def _shuffle(self, vector: ir.Value, order: Iterable[int]) -> ir.Value:
        order = list(order)
        return self.builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INT32, len(order)), order))

    def multiply_add(self, first: ir.Value, second: ir.Value, third: ir.Value) -> ir.Value:
        """first · second + third, in one instruction if the processor has it."""
        module, name = self.builder.module, f"llvm.fmuladd.v{lanes()}f32"
        known = module.globals.get(name)
        function = known or ir.Function(module, ir.FunctionType(self.vector, [self.vector] * 3), name)
        return self.builder.call(function, [first, second, third])

    def at_most(self, vector: ir.Value, limit: float) -> ir.Value:
        """Each number, or the limit if that is smaller; NaN stays."""
        over = self.builder.fcmp_ordered(">", vector, self.constant(limit))
        return self.builder.select(over, self.constant(limit), vector)

    def any_above(self, vector: ir.Value, limit: float) -> ir.Value:
        """One bit: whether any number is above the limit."""
        bits = ir.IntType(lanes())
        over = self.builder.fcmp_ordered(">", vector, self.constant(limit))
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(over, bits), bits(0))

    def exp2(self, vector: ir.Value) -> ir.Value:
        """2^x - 2^-64 for x up to 127, and 0 for x below -64; NaN stays.

        The result is 0 or far above the smallest numbers of float32: those are slow, and some threads round them to 0
        where others do not.
        """
        builder = self.builder
        under = builder.fcmp_ordered("<", vector, self.constant(_LOWEST_EXPONENT))
        vector = builder.select(under, self.constant(_LOWEST_EXPONENT), vector)
        # Above 1.5 · 2^23 a float32 has no fraction, so the sum's last bits are the nearest integer.
        shift = self.constant(1.5 * 2**23)
        shifted = builder.fadd(vector, shift)
        fraction = builder.fsub(vector, builder.fsub(shifted, shift))
        coefficients = _exp2_polynomial()
        power = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            power = self.multiply_add(power, fraction, self.constant(coefficient))
        exponent = builder.shl(
            builder.bitcast(shifted, self._int_vector), ir.Constant(self._int_vector, [23] * lanes())
        )
        power = builder.bitcast(builder.add(builder.bitcast(power, self._int_vector), exponent), self.vector)
        return builder.fsub(power, self.constant(coefficients[0] * 2.0**_LOWEST_EXPONENT))


class Variable:
    """A variable of one type; see `Emitter.variable`."""

    def __init__(self, builder: Builder, value: Any) -> None:
        self._builder, self._type = builder, value.type
        with builder.goto_entry_block():
            self._address = allocate(builder, value.type)
        self.value = value

    @property
    def value(self) -> ir.Value:
        """Its value at the point where code is being written."""
        return self._builder.load(self._address, typ=self._type)

    @value.setter
    def value(self, value: ir.Value) -> None:
        self._builder.store(value, self._address)


def allocate(builder: Builder, kind: ir.Type) -> ir.Value:
    """A pointer to room for one value on the function's stack."""
    address = builder.alloca(kind)
    address.type = POINTER  # llvmlite's own type names what it points at, which no other pointer here does
    return address


def _integer(value: Integer) -> ir.Value:
    return INT(value) if isinstance(value, int) else value


_LOWEST_EXPONENT = -64
"""At and below this exponent a power of 2 is taken for 0."""


@functools.cache
def _exp2_polynomial() -> np.ndarray:
    """2^x on [-1/2, 1/2] within 1.1 · 10^-7, lowest power first: interpolated at Chebyshev's nodes."""
    series = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
    return series.convert(kind=np.polynomial.Polynomial).coef
