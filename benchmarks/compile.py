"""Compiles colorjax's programs for accelerators that need not be here, and prints the compilers' estimates.

    python -m benchmarks compile --topology=v5e:2x2,h100:1 --programs=joint,pretrain --json=compile.json

Nothing is measured. TPUs need `pip install "jax[tpu]"`, GPUs `pip install "jax[cuda13]"` (4.9 GB), best each in its own
environment. Topologies are those of libtpu, such as v5e:1x1, v5e:2x2, v5e:4x4, v6e:2x2 and v5p:2x2x1, and h100:N for N
GPUs in one host.
"""

# The plugins need not be installed.
# pyright: reportMissingImports=false

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import hlo
from benchmarks.measure import REPOSITORY, Row, Settings
from colorjax.cli import configuration
from colorjax.cli.arguments import Parser, listed, number
from colorjax.cli.errors import UsageError, one_line

TITLE = "What the compilers say: estimates, nothing is measured"

PROGRAMS = ("joint", "pretrain", "evaluate", "predict")
PIECES = ("augmentation", "patch_attention", "output_attention", "color_loss")
"""Parts of the joint step, which compile in seconds; all but the augmentation with their gradients."""

_OPERATIONS = 10


class Chip(NamedTuple):
    """A chip's data sheet.

    Attributes:
        memory: bytes.
        clock: Hz, of the cycles that a TPU's compiler counts; None for a GPU.
        bandwidth: of the memory, bytes a second.
        flops: bfloat16 operations a second.
    """

    memory: float
    clock: float | None
    bandwidth: float
    flops: float


CHIPS = {
    "v4": Chip(32e9, 1.05e9, 1228e9, 275e12),
    "v5e": Chip(16e9, 0.94e9, 819e9, 197e12),
    "v5p": Chip(95e9, 1.75e9, 2765e9, 459e12),
    "v6e": Chip(32e9, 0.94e9, 1640e9, 918e12),
    "h100": Chip(80e9, None, 3352e9, 989e12),
}

# XLA's description of the GPU (GpuTargetConfig), as an H100 SXM reports itself.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    configuration.add_arguments(parser, default="configs/paper.py")
    add = parser.add_argument
    add("--topology", type=listed(_topology), default="v5e:2x2", metavar="NAMES", help="chips, by commas")
    add(
        "--programs",
        type=listed(_program_name),
        default="joint",
        metavar="NAMES",
        help=f"what is compiled, by commas: {', '.join(PROGRAMS)}; or parts of the joint step: {', '.join(PIECES)}",
    )
    add("--per-chip", type=number(int, 0), default=0, metavar="N", help="photos a chip; 0 is the stage's batch_size")
    add("--classes", type=number(int, 1), default=101, metavar="N", help="class labels")


def _topology(text: str) -> str:
    if text.partition(":")[0] not in CHIPS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a topology; the chips are {', '.join(CHIPS)}, as in v5e:2x2")
    return text


def _program_name(text: str) -> str:
    if text not in PROGRAMS + PIECES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a program; there are {', '.join(PROGRAMS + PIECES)}")
    return text


def prepare_environment(topologies: Iterable[str]) -> None:
    """Sets the environment variables that must be set before JAX is imported.

    JAX then ignores this machine's accelerators, and libtpu does not look for a TPU host.

    Args:
        topologies: what is compiled for.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    if any(topology.startswith("v5e") for topology in topologies):
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")


def rows(settings: Settings) -> list[Row]:
    """Compiles each program for each topology; also prints the most expensive operations, which the JSON has too."""
    config = configuration.load(settings.config, settings.overrides)
    found = []
    for topology in settings.topology:
        for program in settings.programs:
            row = compiled_row(topology, program, config, per_chip=settings.per_chip, classes=settings.classes)
            print(_most_expensive(row), flush=True)
            found.append(row)
    return found


def compiled_row(topology: str, program: str, config: Any, *, per_chip: int = 0, classes: int = 101) -> Row:
    """Compiles one program for chips that need not be here, and analyzes the result.

    Args:
        topology: "v5e:2x2", "h100:8", ….
        program: one of PROGRAMS or PIECES.
        config: see configs/paper.py.
        per_chip: photos a chip; 0 is the stage's batch_size for each chip.
        classes: number of class labels.

    Raises:
        ValueError: if the program or the topology is unknown.
    """
    kind = topology.partition(":")[0]
    if program not in PROGRAMS + PIECES or kind not in CHIPS:
        raise ValueError(
            f"cannot compile {program!r} for {topology!r}: programs are {', '.join(PROGRAMS + PIECES)}; chips are "
            f"{', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    mesh = _mesh(topology)
    with _as_if_on(chip):
        if program in PIECES:
            step, arguments, batch = _piece(program, config, mesh, per_chip)
        else:
            step, arguments, batch = _program(program, config, mesh, per_chip, classes)
        start = time.perf_counter()
        lowered = step.lower(*arguments)
        traced = time.perf_counter()
        compiled = lowered.compile()
    seconds = time.perf_counter() - traced
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    held -= memory.alias_size_in_bytes
    flops = hlo.matrix_flops(lowered.as_text("hlo")) / mesh.devices.size
    row: Row = {
        "topology": topology,
        "program": program,
        "photos a chip": batch // mesh.devices.size,
        "trace s": traced - start,
        "compile s": seconds,
        "arguments MB": memory.argument_size_in_bytes / 1e6,
        "temporaries MB": memory.temp_size_in_bytes / 1e6,
        "outputs MB": memory.output_size_in_bytes / 1e6,
        "fits": "yes" if held < chip.memory else "no",
        "matrix GFLOP a chip": flops / 1e9,
        "ms of FLOPs": 1e3 * flops / chip.flops,
    }
    return row | analysis(compiled.as_text(), chip)


def analysis(text: str, chip: Chip, *, root: str = f"{REPOSITORY}/") -> Row:
    """Estimates the cost of one run of a compiled program on one chip.

    Args:
        text: the compiled program's.
        chip: the chip that it is compiled for.
        root: folder of the source files to which operations are attributed.

    Returns:
        For a TPU the estimated cycles, for a GPU the bytes moved, and the milliseconds that these take by the data
        sheet; the number of kernels, and for a TPU how many have no estimate and count as 0; number and megabytes of
        each kind of collective; and the most expensive operations, each with its share, how often it runs, and its
        source line.
    """
    module = hlo.parse(text)
    costs, kernels, unknown = [], 0.0, 0.0
    collectives: dict[str, list[float]] = {}
    for times, computation, instruction in module.executed():
        if not hlo.is_kernel(instruction):
            continue
        kernels += times
        if chip.clock:
            cost = times * hlo.estimated_cycles(instruction)
            unknown += times * (
                not cost and instruction.opcode in ("fusion", "custom-call", "gather", "scatter", "sort")
            )
        else:
            cost = times * hlo.moved_bytes(module, computation, instruction)
        costs.append((cost, times, instruction))
        if kind := hlo.collective_kind(instruction):
            of_kind = collectives.setdefault(kind, [0.0, 0.0])
            of_kind[0] += times
            of_kind[1] += times * hlo.collective_bytes(instruction)
    total = sum(cost for cost, _, _ in costs)
    unit = {"estimated M cycles": total / 1e6} if chip.clock else {"estimated GB moved": total / 1e9}
    row: Row = unit | {"estimated ms": 1e3 * total / (chip.clock or chip.bandwidth), "kernels": int(kernels)}
    if chip.clock:
        row["kernels without estimate"] = int(unknown)
    for kind, (times, size) in sorted(collectives.items()):
        row |= {f"{kind}s": int(times), f"{kind} MB": size / 1e6}
    row["operations"] = [
        {
            "share": cost / total,
            "times": times,
            "operation": f"{instruction.opcode} {instruction.name}",
            "result": instruction.shape.split("{")[0],
            "line": module.source(instruction, inside=root),
        }
        for cost, times, instruction in sorted(costs, key=lambda c: -c[0])[:_OPERATIONS]
        if total
    ]
    return row


def _most_expensive(row: Row) -> str:
    unit = next(name for name in ("estimated M cycles", "estimated GB moved") if name in row)
    lines = [f"\n{row['topology']} {row['program']}: {row[unit]:.4g} {unit}, of which"]
    for operation in row["operations"]:
        cost = operation["share"] * row[unit]
        lines.append(
            f"  {cost:8.3g}  ×{operation['times']:<5g} {operation['line'] or '–':45} {operation['operation'][:44]:44} "
            f"{operation['result'][:60]}"
        )
    return "\n".join(lines)


def _mesh(topology: str) -> Any:
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    kind, _, shape = topology.partition(":")
    extra = "tpu" if CHIPS[kind].clock else "cuda13"
    try:
        if extra == "tpu":
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
        else:
            import jax_plugins.xla_cuda13  # noqa: F401  # makes the platform known

            jax.devices()
            described = topologies.get_topology_desc(
                platform="cuda", topology_name="", target_config=_H100, topology=f"1x1x{shape or 1}"
            )
    except (RuntimeError, ImportError) as error:
        raise UsageError(f'--topology is {topology}; it needs pip install "jax[{extra}]": {one_line(error)}') from error
    return Mesh(np.array(described.devices), ("data",), axis_types=(AxisType.Auto,))


@contextlib.contextmanager
def _as_if_on(chip: Chip) -> Iterator[None]:
    """While a program is traced, answers questions about this machine's device as if it had the chip."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    from colorjax.ops import dispatch
    from colorjax.run import compilation

    with contextlib.ExitStack() as stack:

        def replace(module: Any, name: str, by: Callable) -> None:
            stack.enter_context(mock.patch.object(module, name, by))

        replace(compilation, "compiler_options", dict)
        if not chip.clock:
            replace(dispatch, "has_cudnn_attention", lambda dtype: dtype.itemsize == 2)
            replace(cudnn, "check_cudnn_version", lambda: 90800)
            replace(cudnn, "check_compute_capability", lambda capability: float(capability) <= 9)
            replace(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
        yield


def _program(program: str, config: Any, mesh: Any, per_chip: int, classes: int) -> tuple[Any, tuple[Any, ...], int]:
    """The jitted function, the shapes of its arguments, and the number of photos over all chips."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from colorjax.model.decode import make_decoder
    from colorjax.model.program import abstract_model
    from colorjax.photos import predictor
    from colorjax.run import sharding
    from colorjax.training.optimizer import initial_state, make_optimizer
    from colorjax.training.step import ColorReference, make_eval_step, make_train_step

    stage = "pretrain" if program == "pretrain" else "joint"
    config = config.copy_and_resolve_references().unlock()
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"
    batch = (per_chip or config[stage].batch_size) * mesh.devices.size
    config[stage].batch_size = batch
    model, params, stats = abstract_model(config, stage, classes=classes)
    size, side = config.data.image_size, config.data.resolution
    photos: Any = {
        "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    reference = None if stage == "pretrain" else ColorReference(jnp.full(313, 1 / 313), jnp.ones(313))
    if program == "predict":
        square = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
        whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
        decoder = make_decoder(config, np.full(313, 1 / 313))
        forward = functools.partial(predictor._forward, model, decoder, config.model.output_stride)
        step: Any = jax.jit(
            lambda params, stats, photos: forward(params, stats, photos, None, None, None),
            in_shardings=(whole, whole, split),
            out_shardings=split,
        )
        return step, (params, stats, square), batch
    if program == "evaluate":
        step = make_eval_step(model, config, reference=reference, mesh=mesh)
        return step, (params, stats, photos), batch
    optimizer = make_optimizer(config, stage)
    before = jax.eval_shape(
        lambda params, stats: initial_state(params, stats, optimizer, average=config[stage].ema > 0), params, stats
    )
    step = make_train_step(model, optimizer, config, stage, reference=reference, mesh=mesh)
    return step, (before, photos), batch


def _piece(piece: str, config: Any, mesh: Any, per_chip: int) -> tuple[Any, tuple[Any, ...], int]:
    """`_program` for a part of the joint step."""
    import jax
    import jax.numpy as jnp

    from colorjax import color
    from colorjax.model import networks
    from colorjax.ops.patch_attention import patch_attention
    from colorjax.ops.softmax_attention import dot_product_attention
    from colorjax.run import sharding
    from colorjax.training import losses
    from colorjax.training.augment import augment

    batch = (per_chip or config.joint.batch_size) * mesh.devices.size
    dtype = jnp.dtype("bfloat16" if config.model.dtype == "auto" else config.model.dtype)
    size, stride = config.data.image_size, config.model.output_stride
    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)

    def split_array(*shape: int, dtype: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=split)

    def whole_array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    def both_ways(form: Callable, cotangent: Any, *operands: Any) -> tuple[Any, tuple[Any, ...]]:
        def run(cotangent: Any, *operands: Any) -> Any:
            out, pull = jax.vjp(form, *operands)
            return out, pull(cotangent)

        return jax.jit(run), (cotangent, *operands)

    if piece == "augmentation":

        def views(image: jax.Array, seed: jax.Array) -> Any:
            rgb, inside = augment(image, jax.random.key(seed), size=size, **config.augment)
            lab = color.rgb_to_lab(rgb)
            return lab[..., 0], lab[..., 1], lab[..., 2], inside

        side = config.data.resolution
        return jax.jit(views), (split_array(side, side, 3, dtype=jnp.uint8), whole_array(dtype=jnp.int32)), batch
    if piece == "patch_attention":
        kernels = tuple(config.model.patch_kernels)
        operands, out = [], []
        for level, kernel_size in enumerate(kernels):
            side = size // 2 ** (level + 1)
            channels = networks.scaled(128 * 2**level, config.model.width) // config.model.patch_output_ratio
            groups = channels // config.model.patch_share
            weights = kernel_size**2 * groups
            out.append(split_array(side, side, channels))
            operands.append(
                (split_array(side, side, groups), whole_array(groups, weights), whole_array(weights), out[-1])
            )

        def levels(*operands: Any) -> Any:
            return [patch_attention(*o, kernel_size=k) for o, k in zip(operands, kernels, strict=True)]

        return *both_ways(levels, out, *operands), batch
    tokens = size // stride
    if piece == "output_attention":
        features = networks.scaled(32, config.model.width)
        keys = tokens**2 // (4 if config.model.output_attention == "pooled" else 1)
        q, k = split_array(tokens**2, max(1, features // 8)), split_array(keys, max(1, features // 8))
        v, out = split_array(keys, features // 2), split_array(tokens**2, features // 2)
        return *both_ways(dot_product_attention, out, q, k, v), batch

    def color_loss(logits: jax.Array, ab: jax.Array, prior: jax.Array, rarity: jax.Array) -> Any:
        targets = losses.color_targets(
            ab,
            inside=jnp.ones(ab.shape[:3]),
            mask=jnp.ones(batch),
            factor=stride,
            rarity_weights=rarity,
            neighbors=config.loss.neighbors,
            sigma=config.loss.sigma,
        )
        return losses.color_terms(logits.astype(jnp.float32), targets, prior=prior)

    arguments = (
        split_array(tokens, tokens, 313),
        split_array(size, size, 2, dtype=jnp.float32),
        whole_array(313),
        whole_array(313),
    )
    return jax.jit(jax.value_and_grad(color_loss, has_aux=True)), arguments, batch
