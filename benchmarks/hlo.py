"""Reads the text of a compiled XLA program: what runs how often, and the compiler's estimate of its cost.

The text is that of `jax.stages.Compiled.as_text()`. Nothing here runs the program or needs its device.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}
# Instructions that name or pass on a value and do no work.
_FREE = frozenset(
    (
        "add-dependency",
        "after-all",
        "bitcast",
        "constant",
        "domain",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
    )
)
_CONTROL = frozenset(("while", "conditional", "call"))


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: without its percent sign.
        shape: as written, layout included.
        opcode: "fusion", "add", ….
        operands: names.
        attributes: what follows the operands.
        argument: the text between the parentheses.
        is_root: whether it is the computation's result.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    argument: str
    is_root: bool

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as `calls` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclass
class Module:
    """A program's computations, each a list of instructions in their scheduled order."""

    computations: dict[str, list[Instruction]]
    entry: str
    files: dict[int, str] = field(default_factory=dict)
    locations: dict[int, tuple[int, int]] = field(default_factory=dict)  # location -> file, line
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)  # frame -> location, parent

    @functools.cached_property
    def shapes(self) -> dict[tuple[str, str], str]:
        """(computation, instruction) -> shape."""
        return {(name, i.name): i.shape for name, body in self.computations.items() for i in body}

    def root(self, computation: str) -> Instruction:
        """The instruction that a computation returns."""
        body = self.computations[computation]
        return next((i for i in body if i.is_root), body[-1])

    def executed(self) -> Iterator[tuple[float, str, Instruction]]:
        """Yields each instruction with how often it runs in one run of the program, and its computation.

        A loop's body counts as often as the loop turns, and each branch of a conditional once. The insides of fusions
        and reductions are left out.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, computation: str, times: float) -> Iterator[tuple[float, str, Instruction]]:
        for i in self.computations[computation]:
            if i.opcode == "while":
                trips = self.trip_count(i)
                for attribute in ("condition", "body"):
                    if called := i.called(attribute):
                        yield from self._executed(called, times * trips)
            elif i.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
                names = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
                names += [c for a in ("true_computation", "false_computation") if (c := i.called(a))]
                for name in names:
                    yield from self._executed(name, times)
            elif (i.opcode == "call" and (called := i.called("to_apply"))) or (
                i.opcode == "async-start" and (called := i.called("calls"))
            ):
                yield from self._executed(called, times)
            else:
                yield times, computation, i

    def trip_count(self, loop: Instruction) -> int:
        """How often a `while` turns: as the compiler knows it, or the largest integer in its condition."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = loop.called("condition")
        constants = [1]
        todo = [condition] if condition else []
        while todo:
            for i in self.computations.get(todo.pop(), ()):
                if i.opcode == "constant" and re.fullmatch(r"\d+", i.argument):
                    constants.append(int(i.argument))
                if called := i.called("calls"):
                    todo.append(called)
        return max(constants)

    def source(self, instruction: Instruction, *, inside: str) -> str:
        """file:line of the innermost frame whose file's path has `inside` in it; "" if there is none."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        frame = int(found[1]) if found else 0
        seen = set()
        while frame in self.frames and frame not in seen:
            seen.add(frame)
            location, parent = self.frames[frame]
            file, line = self.locations.get(location, (0, 0))
            path = self.files.get(file, "")
            if inside in path:
                return f"{path.rsplit(inside, 1)[1].lstrip('/')}:{line}"
            frame = parent
        found = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
        if found and inside in found[1]:
            return f"{found[1].rsplit(inside, 1)[1].lstrip('/')}:{found[2]}"
        return ""


def parse(text: str) -> Module:
    """Parses a program's text, from before or after optimization.

    Raises:
        ValueError: if it has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current, section = "", None, ""
    module = Module(computations, "")
    for line in text.splitlines():
        if current is None:
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                section = line
                continue
            head = re.match(r"(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{$", line)
            if head and not line.startswith("HloModule"):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
            elif section:
                _read_frame(module, section, line)
        elif line.startswith("}"):
            current = None
        elif instruction := _instruction(line):
            current.append(instruction)
    if not entry:
        raise ValueError("the program has no ENTRY computation: is this the text of an HLO module?")
    module.entry = entry
    return module


def _read_frame(module: Module, section: str, line: str) -> None:
    if section == "FileNames" and (found := re.match(r'(\d+) "(.*)"', line)):
        module.files[int(found[1])] = found[2]
    elif section == "FileLocations" and (found := re.match(r"(\d+) \{file_name_id=(\d+).*?\bline=(\d+)", line)):
        module.locations[int(found[1])] = (int(found[2]), int(found[3]))
    elif section == "StackFrames" and (found := re.match(r"(\d+) \{file_location_id=(\d+)", line)):
        parent = re.search(r"parent_frame_id=(\d+)", line)
        module.frames[int(found[1])] = (int(found[2]), int(parent[1]) if parent else 0)


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    close = start + _closing(rest[start:])
    opcode, argument = rest[:start], rest[start + 1 : close]
    plain = re.sub(r"/\*.*?\*/", "", argument)
    operands = tuple(re.findall(r"%([\w.\-]+)", plain))
    if not operands and opcode not in ("parameter", "constant", "iota"):
        operands = tuple(word.split()[-1] for word in plain.split(",") if word.strip())
    return Instruction(found[2], shape, opcode, operands, rest[close + 1 :], argument, bool(found[1]))


def _closing(text: str) -> int:
    """The index at which the text's first parenthesis closes."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place
    return len(text) - 1


def shape_bytes(shape: str) -> int:
    """The bytes of an array, or of all arrays of a tuple, without a layout's padding."""
    return sum(_array_bits(kind, dims) for kind, dims in _arrays(shape)) // 8


def _arrays(shape: str) -> list[tuple[str, str]]:
    shape = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)
    return re.findall(r"([a-z]\w*)\[([^\]]*)\]", shape)


def _array_bits(kind: str, dims: str) -> int:
    size = math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d)
    return size * (_BITS[kind] if kind in _BITS else int((re.findall(r"\d+", kind) or ["0"])[0]))


def estimated_cycles(instruction: Instruction) -> int:
    """The estimate of a TPU's compiler for an instruction; 0 if it has none."""
    found = re.search(r'"estimated_cycles":"?(\d+)', instruction.attributes)
    return int(found[1]) if found else 0


def is_kernel(instruction: Instruction) -> bool:
    """Whether an executed instruction is a kernel: a fusion, a library call, a copy, ….

    The start of an asynchronous pair counts, and its end does not.
    """
    opcode = instruction.opcode
    return opcode not in _FREE and opcode not in _CONTROL and not opcode.endswith(("-done", "-update"))


def collective_kind(instruction: Instruction) -> str | None:
    """The kind of collective; None for other instructions, and for the end of an asynchronous pair."""
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in COLLECTIVES else None


def collective_bytes(instruction: Instruction) -> int:
    """The bytes that a device holds after the collective."""
    if instruction.opcode.endswith("-start") and instruction.shape.startswith("("):
        arrays = _arrays(instruction.shape)
        # A start's tuple holds the operands, then the results; an all-reduce's holds only results.
        if not instruction.opcode.startswith("all-reduce"):
            arrays = arrays[len(arrays) // 2 :]
        return sum(_array_bits(*a) for a in arrays) // 8
    return shape_bytes(instruction.shape)


def moved_bytes(module: Module, computation: str, instruction: Instruction) -> int:
    """The bytes that an executed instruction reads and writes, if no cache holds any of them.

    An array that is only sliced counts as its slice, and one that is updated in place as its update. A library's
    working space does not count.
    """
    if not is_kernel(instruction):
        return 0
    operands = [shape_bytes(module.shapes.get((computation, name), "")) for name in instruction.operands]
    result = shape_bytes(instruction.shape)
    match instruction.opcode:
        case "fusion":
            called = instruction.called("calls")
            if called in module.computations:
                return _fusion_bytes(module, called, operands)
        case "dynamic-update-slice":
            return 2 * operands[1]
        case "dynamic-slice" | "slice" | "gather":
            return 2 * result + sum(operands[1:])
        case "scatter":
            return 2 * operands[-1] + operands[1]
        case "broadcast" | "iota" | "rng-bit-generator":
            return result
        case "custom-call":
            space = [bits for kind, bits in _sized(instruction.shape) if kind in ("u8", "s8")]
            if instruction.shape.startswith("("):
                result -= sum(space) // 8
    return sum(operands) + result


def _sized(shape: str) -> list[tuple[str, int]]:
    return [(kind, _array_bits(kind, dims)) for kind, dims in _arrays(shape)]


def _fusion_bytes(module: Module, called: str, operands: list[int]) -> int:
    body = module.computations[called]
    by_name = {i.name: i for i in body}
    users: dict[str, list[Instruction]] = {}
    for i in body:
        for name in i.operands:
            users.setdefault(name, []).append(i)

    def read(name: str, whole: int) -> int:
        """The bytes read of an operand: all of it, or the slices if nothing else uses it."""
        total = 0
        for user in users.get(name, ()):
            if user.opcode in ("slice", "dynamic-slice", "gather") and user.operands[0] == name:
                total += shape_bytes(user.shape)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                pass  # in place
            elif user.opcode == "bitcast":
                total += read(user.name, whole)
            else:
                return whole
        return min(total, whole)

    def written(i: Instruction) -> int:
        if i.opcode == "tuple":
            return sum(written(by_name[name]) for name in i.operands)
        if i.opcode == "bitcast" and i.operands[0] in by_name and by_name[i.operands[0]].opcode != "parameter":
            return written(by_name[i.operands[0]])
        if i.opcode == "dynamic-update-slice":
            return shape_bytes(by_name[i.operands[1]].shape)
        return shape_bytes(i.shape)

    total = written(next((i for i in body if i.is_root), body[-1]))
    for i in body:
        if i.opcode == "parameter" and int(i.argument) < len(operands):
            total += read(i.name, operands[int(i.argument)])
    return total


def matrix_flops(text: str) -> float:
    """The floating-point operations of a program's products and convolutions; a multiply-add is two.

    Args:
        text: of the program before optimization (`jax.stages.Lowered.as_text("hlo")`), which has no library calls yet.
    """
    module = parse(text)
    total = 0.0
    for times, computation, i in module.executed():
        if i.opcode == "dot":
            left = _dimensions(module.shapes[computation, i.operands[0]])
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
            over = math.prod(left[int(d)] for d in contracted[1].split(",") if d) if contracted else 1
            total += times * 2 * math.prod(_dimensions(i.shape)) * over
        elif i.opcode == "convolution":
            total += times * _convolution_flops(module, computation, i)
    return total


def _convolution_flops(module: Module, computation: str, i: Instruction) -> float:
    kernel = _dimensions(module.shapes[computation, i.operands[1]])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels
    result = _dimensions(i.shape)
    inputs = kernel[labels[2].index("i")]
    # Of a dilated input only each lhs_dilate-th tap is not zero.
    dilation = re.search(r"lhs_dilate=([\dx]+)", i.attributes)
    stretch = math.prod(int(d) for d in dilation[1].split("x")) if dilation else 1
    taps = math.prod(size for size, label in zip(kernel, labels[2], strict=True) if label not in "io")
    return 2 * math.prod(result) * inputs * taps / stretch


def _dimensions(shape: str) -> list[int]:
    return [int(d.lstrip("<=")) for d in _arrays(shape)[0][1].split(",") if d]
