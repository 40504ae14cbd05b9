"""Training: the start-up order, and the one loop that both stages share."""

import functools
import itertools
import logging
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from colorjax import atomic, color, data, metrics
from colorjax.data.batches import center_crop, eval_batch_size
from colorjax.data.teacher import Teacher
from colorjax.model.networks import scaled
from colorjax.model.program import TEACHER_HEAD, Tree, abstract_model, init_model
from colorjax.run import compilation, sharding
from colorjax.run.checkpoints import Checkpoints, require_space, set_aside_damaged
from colorjax.run.config import STAGES, Config, validate
from colorjax.run.pictures import ATTENTION_SIDE, draw_attention, panel
from colorjax.run.prior import check_prior, load_prior
from colorjax.run.workdir import (
    bind_config,
    checkpoint_dir,
    differences,
    latest_step,
    local_path,
    lock,
    metrics_file,
    panel_file,
    save_class_names,
)
from colorjax.training.optimizer import init_state, initial_state, make_optimizer
from colorjax.training.pretrained import check_pretrained, graft_pretrained
from colorjax.training.progress import Progress, duration, has_validation
from colorjax.training.step import color_reference, make_eval_step, make_train_step
from colorjax.training.termination import Termination, termination

_log = logging.getLogger(__name__)

_PANEL_PHOTOS = 8
# Folded into the seed's key; neither the initialization nor the augmentation (step.py) folds in this number.
_TEACHER_KEY = 2**32 - 2


def train(config: Config, workdir: str | Path) -> None:
    """Trains the configured stages in order, each from where it stopped.

    Writes config.json, classes.json, and for each stage its checkpoints, metrics.jsonl, TensorBoard's files and, in the
    joint stage, panels: see run/workdir.py.

    Args:
        config: see configs/paper.py.
        workdir: one directory a run; on several hosts one that all of them see.

    Raises:
        ValueError: for a configuration that does not hold together, or another one than the workdir's. Every stage
            that is to run is built and traced on the devices before the first step of any of them.
        BlockingIOError: if another run trains in the workdir.
        OSError: if the disk has no room for a checkpoint, or is read-only.
        FloatingPointError: if the loss stops being finite; the checkpoints stay as they were.
        SystemExit: 143, after saving, on SIGTERM; in a `termination` block also 130 on SIGINT.
    """
    workdir = local_path(workdir)
    if config.stage not in ("both", *STAGES):
        raise ValueError(f"stage is {config.stage!r}; it must be both, pretrain or joint")
    validate(config)
    differences(config, workdir)
    atomic.require_writable(workdir)
    stages = [stage for stage in STAGES if config.stage in ("both", stage) and config[stage].steps > 0]
    mesh = sharding.make_mesh()
    with termination(signal.SIGTERM) as stop:
        info = data.dataset_info(config.data)
        unfinished = [stage for stage in stages if (latest_step(workdir, stage) or 0) < config[stage].steps]
        for stage in unfinished:
            # The first of them is traced anyway before its first step.
            trace = stage != unfinished[0]
            _check_stage(config, stage, workdir, mesh, classes=len(info.class_names), trace=trace)
        with lock(workdir):
            bind_config(config, workdir)
            sharding.barrier("config")
            if jax.process_index() == 0:
                save_class_names(workdir, tuple(info.class_names))
            for stage in stages:
                set_aside_damaged(checkpoint_dir(workdir, stage))
                with Checkpoints(checkpoint_dir(workdir, stage)) as checkpoints:
                    stop.saving = checkpoints.saving
                    _train_stage(config, stage, workdir, mesh, info, checkpoints, stop)


def _check_stage(config: Config, stage: str, workdir: Path, mesh: Mesh, *, classes: int, trace: bool) -> None:
    """Builds a stage, and with `trace` traces its steps on the mesh, which refuses what it cannot run with."""
    program, params, stats = abstract_model(config, stage, classes=classes)
    if stage == "joint" and latest_step(workdir, stage) is None:
        check_pretrained(config, workdir, params, stats, classes=classes)
    optimizer = make_optimizer(config, stage)
    teacher = _open_teacher(config, stage)
    if teacher:
        params[TEACHER_HEAD] = jax.eval_shape(lambda: _init_teacher_head(config, teacher.features))
    # The values of prior and weights change nothing in a trace.
    uniform = np.full(color.NUM_BINS, 1 / color.NUM_BINS)
    reference = color_reference(uniform, config) if stage == "joint" else None
    train_step = make_train_step(program, optimizer, config, stage, reference=reference, mesh=mesh)
    eval_step = make_eval_step(program, config, reference=reference, mesh=mesh)
    state = jax.eval_shape(
        lambda params, stats: initial_state(params, stats, optimizer, average=config[stage].ema > 0), params, stats
    )
    require_space(checkpoint_dir(workdir, stage), state)
    if not trace:
        return
    side = config.data.resolution

    def batch(size: int) -> Any:
        return {
            "image": jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((size,), jnp.float32),
        }

    train_batch = batch(config[stage].batch_size)
    if teacher:
        train_batch["teacher"] = jax.ShapeDtypeStruct((config[stage].batch_size, teacher.features), jnp.float32)
    jax.eval_shape(train_step, state, train_batch)
    jax.eval_shape(eval_step, params, stats, batch(eval_batch_size(mesh.devices.size)))
    if stage == "joint":
        check_prior(config, workdir)


def _train_stage(
    config: Config,
    stage: str,
    workdir: Path,
    mesh: Mesh,
    info: data.DatasetInfo,
    checkpoints: Checkpoints,
    stop: Termination,
) -> None:
    """Trains one stage from its newest checkpoint, or from the start, to its last step."""
    settings = config[stage]
    start = checkpoints.latest_step() or 0
    # A run that was stopped may still owe the validation of its newest checkpoint. One host reads the file for all.
    owed = _validation_due(start, settings) and not has_validation(metrics_file(workdir, stage), start)
    owed = bool(multihost_utils.broadcast_one_to_all(np.asarray(start > 0 and owed)))
    if start >= settings.steps and not owed:
        _log.info("%s: all %d steps are done", stage, settings.steps)
        return
    classes = len(info.class_names)
    reference = color_reference(load_prior(config, workdir).p, config) if stage == "joint" else None
    optimizer = make_optimizer(config, stage)
    program, *_ = abstract_model(config, stage, classes=classes)
    train_step = make_train_step(program, optimizer, config, stage, reference=reference, mesh=mesh)
    eval_step = make_eval_step(program, config, reference=reference, mesh=mesh)

    params, stats = init_model(config, stage, classes=classes)
    if not start and stage == "joint":
        params, stats = graft_pretrained(config, workdir, params, stats)
    teacher = _open_teacher(config, stage)
    if teacher:
        params[TEACHER_HEAD] = _init_teacher_head(config, teacher.features)
    state = init_state(params, stats, optimizer, mesh, average=settings.ema > 0)
    del params, stats
    if start:
        state = checkpoints.restore(state)
    _log.info(
        "%s: %.1f M parameters, step %d of %d, batches of %d from %s (%d photos), on %d × %s",
        stage,
        sum(p.size for p in jax.tree.leaves(state.params)) / 1e6,
        start,
        settings.steps,
        settings.batch_size,
        info.name,
        info.sizes["train"],
        mesh.devices.size,
        mesh.devices.flat[0].device_kind,
    )
    progress = Progress(
        metrics_file(workdir, stage),
        start=start,
        steps=settings.steps,
        batch_size=settings.batch_size,
        summed=stage == "joint" and config.loss.pixels == "sum",
    )
    since_record: metrics.Totals = {}

    def settle(step: int, logged: metrics.Totals) -> None:
        # Waits for this step alone: the devices are busy with the next one already.
        nonlocal since_record
        read = jax.device_get(logged)
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(read[name][0]):
                raise FloatingPointError(
                    f"{stage}: the {name} of step {step} is {read[name][0]}; lower {stage}.learning_rate "
                    f"or set {stage}.clip_norm. The newest checkpoint is from before."
                )
        since_record = metrics.add(since_record, read) if since_record else read
        means = metrics.mean(since_record)
        progress.advance(step, means)
        if step % settings.log_every == 0 or step == settings.steps:
            progress.train(step, means)
            since_record = {}

    def save_panel(step: int, batch: data.Batch, colored: jax.Array) -> None:
        if jax.process_index() != 0:
            return
        predicted = sharding.local_rows(colored)[:_PANEL_PHOTOS]
        true = np.asarray(center_crop(batch["image"], config.data.image_size))[:_PANEL_PHOTOS]
        picture = panel(true, {"predicted": predicted})
        path = panel_file(workdir, stage, step)
        path.parent.mkdir(exist_ok=True)
        with atomic.replacing(path) as temporary:
            Image.fromarray(picture).save(temporary, "PNG")
        progress.picture(step, "gray | predicted | true", picture)

    compiled_attention: Any = None

    def show_attention(step: int, batch: data.Batch) -> None:
        nonlocal compiled_attention
        if jax.process_index() != 0 or not (config.model.patch_attention or config.model.output_attention != "none"):
            return
        photo = np.asarray(center_crop(batch["image"], config.data.image_size))[0]
        # The state is whole on every device, so this host needs no other.
        params, stats = jax.tree.map(lambda x: x.addressable_data(0), (state.params, state.stats))
        args = (params, stats, color.lightness(photo[None], gray=False))
        middle = np.float32(0.5)
        if compiled_attention is None:
            look = functools.partial(program.attention_weights, x=middle, y=middle)
            jitted = jax.jit(look, compiler_options=compilation.compiler_options())
            compiled_attention = _compile(jitted, *args, name=f"{stage} picture of the attention")
        weights = jax.device_get(compiled_attention(*args))
        shown = np.asarray(Image.fromarray(photo).resize((ATTENTION_SIDE, ATTENTION_SIDE)))
        picture = draw_attention(shown, (0.5, 0.5), weights, size=config.data.image_size)
        progress.picture(step, "where attention looks from the middle", picture)

    compiled_eval_step: Any = None

    def validate_step(step: int) -> None:
        nonlocal compiled_eval_step
        batch_size = eval_batch_size(mesh.devices.size)
        batches = data.eval_batches(
            config.data,
            "validation",
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        measured: list[metrics.Totals] = []
        for batch in itertools.islice(batches, -(-settings.eval_photos // batch_size) or None):
            args = (state.params, state.stats, sharding.to_devices(batch, mesh))
            compiled_eval_step = compiled_eval_step or _compile(eval_step, *args, name=f"{stage} validation")
            logged, colored = compiled_eval_step(*args)
            if measured:  # the devices are busy with the next one already
                measured[-1] = jax.device_get(measured[-1])
            elif colored is not None:
                save_panel(step, batch, colored)
                show_attention(step, batch)
            measured.append(logged)
            if stop.requested():
                stop.exit()
        if not measured:
            raise ValueError("the validation split is empty; lower data.train_fraction")
        progress.validation(step, metrics.mean(functools.reduce(metrics.add, jax.device_get(measured))))

    with closing(progress):
        if owed:
            validate_step(start)
        batches = data.train_batches(
            config.data,
            batch_size=settings.batch_size,
            seed=config.seed,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            teacher=teacher,
        )
        compiled_step: Any = None
        unread: tuple[int, metrics.Totals] | None = None
        for step in range(start + 1, settings.steps + 1):
            batch = sharding.to_devices(next(batches), mesh)
            if compiled_step is None:
                compiled_step = _compile(train_step, state, batch, name=f"{stage} training")
                progress.restart_clock(start)
            stop.hold()
            state, logged = compiled_step(state, batch)
            if unread:
                settle(*unread)
            unread = (step, logged)
            stopping, validating = stop.requested(), _validation_due(step, settings)
            if stopping or validating or step % settings.save_every == 0:
                settle(*unread)
                unread = None
                # Before the validation, which may take longer than a terminated process is given.
                checkpoints.save(state)
                if stopping:
                    checkpoints.wait()
                    _log.info("%s: saved at step %d and stopping, as the signal asks", stage, step)
                    stop.exit()
                stop.release()
                if validating:
                    validate_step(step)
                progress.restart_clock(step)


def _open_teacher(config: Config, stage: str) -> Teacher | None:
    """The teacher of a stage, None if it has none; raises as `data.open_teacher`."""
    return data.open_teacher(config.data) if stage == "joint" and config.loss.teacher_weight else None


def _init_teacher_head(config: Config, features: int) -> Tree:
    """The initial parameters of the linear map from the global vector to the teacher's features."""
    shape = (scaled(512, config.model.width), features)
    key = jax.random.fold_in(jax.random.key(config.seed), _TEACHER_KEY)
    return {"kernel": jax.nn.initializers.lecun_normal()(key, shape), "bias": jnp.zeros(features)}


def _compile(step: Any, *args: Any, name: str) -> Any:
    """A jitted step's program for these arguments, with a word before and after."""
    _log.info("%s: compiling…", name)
    began = time.perf_counter()
    program = step.lower(*args).compile()
    _log.info("%s: compiled in %s", name, duration(time.perf_counter() - began))
    return program


def _validation_due(step: int, settings: Config) -> bool:
    return step == settings.steps or step % settings.eval_every == 0
