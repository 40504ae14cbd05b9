"""What the compilers of accelerators say about colorjax' programs: no chip is needed, and nothing is measured.

    python -m benchmarks compile --topology=v5e:2x2,h100:1 --programs=joint,pretrain --json=compile.json

TPU topologies need `pip install "jax[tpu]"`, GPUs `pip install "jax[cuda13]"` (4.9 GB), each best in an environment of
its own. Known topologies are those of libtpu, such as v5e:1x1, v5e:2x2, v5e:4x4, v6e:2x2 and v5p:2x2x1, and h100:N for
N GPUs in one host.
"""

# The plugins need not be installed.
# pyright: reportMissingImports=false

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import hlo
from benchmarks.measure import REPOSITORY, Row, Settings

TITLE = "What the compilers say: estimates, nothing measured"

PROGRAMS = ("joint", "pretrain", "evaluate", "predict")
PIECES = ("augmentation", "patch_attention", "output_attention", "color_loss")
"""Parts of the joint step, which compile in seconds; those that are trained with their gradients."""

_OPERATIONS = 10


class Chip(NamedTuple):
    """A chip's data sheet.

    Attributes:
        memory: bytes.
        clock: Hz of what the TPU's compiler counts cycles of; None of a GPU.
        bandwidth: bytes a second of its memory.
        flops: a second, bfloat16.
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


def prepare_environment(topology: str) -> None:
    """What has to be in the environment before JAX is imported: the devices that are there are not asked for.

    Args:
        topology: the flag's; libtpu wants to know the largest TPU of it.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    if "v5e" in topology:
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")


def rows(settings: Settings) -> list[Row]:
    """One row a topology and program; its most expensive operations are printed, and are in the JSON."""
    found = []
    for topology in settings.topology.split(","):
        for program in settings.programs.split(","):
            row = compiled_row(topology, program, settings.config, per_chip=settings.per_chip, classes=settings.classes)
            print(_most_expensive(row), flush=True)
            found.append(row)
    return found


def compiled_row(topology: str, program: str, config: Any, *, per_chip: int = 0, classes: int = 101) -> Row:
    """Compiles one program for chips that need not be there, and reads what the compiler made of it.

    Args:
        topology: "v5e:2x2", "h100:8", ….
        program: one of PROGRAMS or PIECES.
        config: a configuration (configs/paper.py).
        per_chip: photos a chip; 0 takes the stage's batch_size for each chip.
        classes: of the classifier.

    Raises:
        ValueError: for a program or a topology that is not known.
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
    """What the text of a compiled program says of one run on one chip.

    Args:
        text: of the compiled program.
        chip: that it is for.
        root: of the files whose lines operations are told by.

    Returns:
        The estimated cycles of a TPU or the bytes that a GPU moves, and the milliseconds that they make by the data
        sheet; the number of kernels, and of those that the compiler of a TPU says nothing about, which count as 0; the
        number and megabytes of each kind of collective; and the most expensive operations, each with its share, how
        often it runs, and the line that it comes from.
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
    for kind, (number, size) in sorted(collectives.items()):
        row |= {f"{kind}s": int(number), f"{kind} MB": size / 1e6}
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
    if CHIPS[kind].clock:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    else:
        import jax_plugins.xla_cuda13  # noqa: F401  # makes the platform known

        jax.devices()
        described = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=_H100, topology=f"1x1x{shape or 1}"
        )
    return Mesh(np.array(described.devices), ("data",), axis_types=(AxisType.Auto,))


@contextlib.contextmanager
def _as_if_on(chip: Chip) -> Iterator[None]:
    """While a program is traced: what asks for the device at hand is told of the chip."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    from colorjax import softmax_attention, state

    with contextlib.ExitStack() as stack:

        def replace(module: Any, name: str, by: Callable) -> None:
            stack.enter_context(mock.patch.object(module, name, by))

        replace(state, "compiler_options", dict)
        if not chip.clock:
            replace(softmax_attention, "has_cudnn_flash", lambda dtype: dtype.itemsize == 2)
            replace(cudnn, "check_cudnn_version", lambda: 90800)
            replace(cudnn, "check_compute_capability", lambda capability: float(capability) <= 9)
            replace(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
        yield


def _program(program: str, config: Any, mesh: Any, per_chip: int, classes: int) -> tuple[Any, tuple[Any, ...], int]:
    """The jitted function, the shapes of its arguments, and the number of photos over all chips."""
    import functools

    import jax
    import jax.numpy as jnp
    from flax import nnx

    from colorjax import models, predict, state, steps

    stage = "pretrain" if program == "pretrain" else "joint"
    config = config.copy_and_resolve_references().unlock()
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"
    batch = (per_chip or config[stage].batch_size) * mesh.devices.size
    config[stage].batch_size = batch
    network = models.Classifier if stage == "pretrain" else models.Colorizer
    size = config.data.image_size
    made = nnx.eval_shape(lambda: network(config.model, classes=classes, image_size=size, rngs=nnx.Rngs(0)))
    model, params, stats = state.Program.split(made)
    side = config.data.resolution
    photos: Any = {
        "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    reference = None if stage == "pretrain" else steps.Reference(jnp.full(313, 1 / 313), jnp.ones(313))
    if program == "predict":
        square = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
        whole, split = state.replicated(mesh), state.by_batch(mesh)
        forward = functools.partial(predict._forward, model, config.model.output_stride)
        step: Any = jax.jit(
            lambda params, stats, photos: forward(params, stats, photos, None, None, None),
            in_shardings=(whole, whole, split),
            out_shardings=split,
        )
        return step, (params, stats, square), batch
    if program == "evaluate":
        step = steps.make_eval_step(model, config, reference=reference, mesh=mesh)
        return step, (params, stats, photos), batch
    optimizer = state.make_optimizer(config, stage)
    opt_state: Any = jax.eval_shape(optimizer.init, params)
    if config[stage].ema:
        opt_state = state.Unaveraged(params, stats, opt_state)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    before = state.TrainState(count, params, stats, opt_state)
    step = steps.make_train_step(model, optimizer, config, stage, reference=reference, mesh=mesh)
    return step, (before, photos), batch


def _piece(piece: str, config: Any, mesh: Any, per_chip: int) -> tuple[Any, tuple[Any, ...], int]:
    """As `_program`, of a part of the joint step."""
    import jax
    import jax.numpy as jnp

    from colorjax import augment, color, losses, networks, state
    from colorjax.fused_patch_attention import patch_attention
    from colorjax.softmax_attention import dot_product_attention

    batch = (per_chip or config.joint.batch_size) * mesh.devices.size
    dtype = jnp.dtype("bfloat16" if config.model.dtype == "auto" else config.model.dtype)
    size, stride = config.data.image_size, config.model.output_stride
    whole, split = state.replicated(mesh), state.by_batch(mesh)

    def of_batch(*shape: int, dtype: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=split)

    def of_all(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    def both_ways(form: Callable, cotangent: Any, *operands: Any) -> tuple[Any, tuple[Any, ...]]:
        def run(cotangent: Any, *operands: Any) -> Any:
            out, pull = jax.vjp(form, *operands)
            return out, pull(cotangent)

        return jax.jit(run), (cotangent, *operands)

    if piece == "augmentation":

        def views(image: jax.Array, seed: jax.Array) -> Any:
            rgb, inside = augment.augment(image, jax.random.key(seed), size=size, **config.augment)
            lab = color.rgb_to_lab(rgb)
            return lab[..., 0], lab[..., 1], lab[..., 2], inside

        side = config.data.resolution
        return jax.jit(views), (of_batch(side, side, 3, dtype=jnp.uint8), of_all(dtype=jnp.int32)), batch
    if piece == "patch_attention":
        kernels = tuple(config.model.patch_kernels)
        operands, out = [], []
        for level, kernel_size in enumerate(kernels):
            side = size // 2 ** (level + 1)
            channels = networks.scaled(128 * 2**level, config.model.width) // config.model.patch_output_ratio
            groups = channels // config.model.patch_share
            weights = kernel_size**2 * groups
            out.append(of_batch(side, side, channels))
            operands.append((of_batch(side, side, groups), of_all(groups, weights), of_all(weights), out[-1]))

        def levels(*operands: Any) -> Any:
            return [patch_attention(*o, kernel_size=k) for o, k in zip(operands, kernels, strict=True)]

        return *both_ways(levels, out, *operands), batch
    tokens = size // stride
    if piece == "output_attention":
        features = networks.scaled(32, config.model.width)
        keys = tokens**2 // (4 if config.model.output_attention == "pooled" else 1)
        q, k = of_batch(tokens**2, max(1, features // 8)), of_batch(keys, max(1, features // 8))
        v, out = of_batch(keys, features // 2), of_batch(tokens**2, features // 2)
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

    arguments = of_batch(tokens, tokens, 313), of_batch(size, size, 2, dtype=jnp.float32), of_all(313), of_all(313)
    return jax.jit(jax.value_and_grad(color_loss, has_aux=True)), arguments, batch
