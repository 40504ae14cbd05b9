"""Training: the start-up order and the one loop that both stages share."""

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from colorjax import checkpointing, color, data, metrics, report, state, steps
from colorjax.config import Config, check, claim
from colorjax.judges import efficientnet
from colorjax.models import SHARED, Classifier, Colorizer
from colorjax.networks import scaled
from colorjax.prior import Prior, count
from colorjax.progress import Progress
from colorjax.state import Program, Tree
from colorjax.trained import is_portable, load_trained, save_class_names

_log = logging.getLogger(__name__)

STAGES = ("pretrain", "joint")
_PANEL_PHOTOS = 8


def train(config: Config, workdir: str | Path) -> None:
    """Trains the configured stages in order, each from where it stopped.

    Writes config.json, classes.json, and for each stage `<stage>/checkpoints`, `<stage>/metrics.jsonl`, TensorBoard's
    files and, in the joint stage, `<stage>/panels`.

    Args:
        config: see configs/paper.py.
        workdir: one directory a run; on several hosts one that all of them see.

    Raises:
        ValueError: for a configuration that does not hold together, or another one than the workdir's.
        FloatingPointError: if the loss stops being finite; the checkpoints stay as they were.
        SystemExit: 143, after saving, on SIGTERM.
    """
    workdir = Path(workdir).absolute()
    if config.stage not in ("both", *STAGES):
        raise ValueError(f"stage is {config.stage!r}; it must be both, pretrain or joint")
    check(config)
    if config.loss.teacher_weight and not config.data.teacher:
        raise ValueError("loss.teacher_weight needs data.teacher, a file that `python -m colorjax.teacher` makes")
    stages = [stage for stage in STAGES if config.stage in ("both", stage) and config[stage].steps > 0]
    for stage in stages:
        # What cannot be built is refused now, and not after a pretraining of weeks.
        state.make_optimizer(config, stage)
        build_program(config, stage, classes=1)
    claim(config, workdir)
    _barrier("claim")
    mesh = state.make_mesh()
    with _termination() as terminated:
        for stage in stages:
            with closing(checkpointing.Checkpoints(workdir / stage / "checkpoints")) as checkpoints:
                _train_stage(config, stage, workdir, mesh, checkpoints, terminated)


def build_program(config: Config, stage: str, *, classes: int) -> Program:
    """A stage's model as a function, without making any parameters."""
    return Program.split(nnx.eval_shape(_maker(config, stage, classes), jax.random.key(0)))[0]


def init_model(config: Config, stage: str, *, classes: int) -> tuple[Tree, Tree]:
    """A stage's initial parameters and statistics, which depend on the seed alone."""
    make = _maker(config, stage, classes)
    # The key is an argument, since of a constant XLA would compute every random number while it compiles; and the
    # program runs once, so LLVM's optimisation would take longer than it saves.
    initialize = jax.jit(
        lambda key: Program.split(make(key))[1:],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return initialize(jax.random.key(config.seed))


def prior_path(config: Config, workdir: Path) -> Path:
    """Where the prior of a run is."""
    return Path(config.data.prior) if config.data.prior else workdir / "prior.npz"


def count_prior(config: Config, path: Path) -> None:
    """Counts the colours of the training split into a file; they depend on the `data` section alone."""
    _log.info("counting the colours of the training split, once, into %s", path)
    batches = data.eval_batches(config.data, "train", batch_size=64)
    crops = ({**b, "image": steps.cropped(b["image"], config)} for b in batches)
    count(crops, source=f"{config.data.source}:train").save(path)


def load_reference(config: Config, workdir: Path) -> steps.Reference:
    """The prior and the rarity weights: from `data.prior`, else from the workdir, where they are counted once."""
    path = prior_path(config, workdir)
    if not config.data.prior:
        if jax.process_index() == 0 and not path.exists():
            count_prior(config, path)
        # Every process comes by here, whether it came before or after the file.
        _barrier("prior")
    prior = Prior.load(path).p
    weights = color.rarity_weights(prior, mix=config.loss.rarity, sigma=config.loss.sigma)
    return steps.Reference(jnp.asarray(prior, jnp.float32), jnp.asarray(weights, jnp.float32))


def _train_stage(
    config: Config,
    stage: str,
    workdir: Path,
    mesh: Mesh,
    checkpoints: checkpointing.Checkpoints,
    terminated: Callable[[], bool],
) -> None:
    own, directory = config[stage], workdir / stage
    taught = stage == "joint" and config.loss.teacher_weight > 0
    start = checkpoints.latest_step() or 0
    if start >= own.steps:
        _log.info("%s: all %d steps are done", stage, own.steps)
        return
    info = data.dataset_info(config.data)
    if jax.process_index() == 0:
        save_class_names(workdir, tuple(info.class_names))
    reference = load_reference(config, workdir) if stage == "joint" else None
    optimizer = state.make_optimizer(config, stage)
    classes = len(info.class_names)
    program = build_program(config, stage, classes=classes)
    train_step = steps.make_train_step(program, optimizer, config, stage, reference=reference, mesh=mesh)
    eval_step = steps.make_eval_step(program, config, reference=reference, mesh=mesh)

    params, stats = init_model(config, stage, classes=classes)
    if not start and stage == "joint":
        params, stats = _grafted(config, workdir, params, stats)
    batches = data.train_batches(
        config.data,
        batch_size=own.batch_size,
        seed=config.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        teacher=taught,
    )
    if taught:
        params[state.TEACHER_HEAD] = _teacher_head(config)
    current = state.init_state(params, stats, optimizer, mesh, average=own.ema > 0)
    del params, stats
    if start:
        current = checkpoints.restore(current)
    _log.info(
        "%s: %.1f M parameters, step %d of %d, batches of %d from %s (%d photos), on %d × %s",
        stage,
        sum(p.size for p in jax.tree.leaves(current.params)) / 1e6,
        start,
        own.steps,
        own.batch_size,
        info.name,
        info.sizes["train"],
        mesh.devices.size,
        mesh.devices.flat[0].device_kind,
    )
    progress = Progress(directory, start=start, steps=own.steps, batch_size=own.batch_size)

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
        if step % own.log_every == 0 or step == own.steps:
            progress.train(step, metrics.mean(since_record))
            since_record = {}

    unread: tuple[int, metrics.Totals] | None = None
    with closing(progress):
        for step in range(start + 1, own.steps + 1):
            batch = state.to_devices(next(batches), mesh)
            current, logged = train_step(current, batch)
            if unread:
                settle(*unread)
            unread = (step, logged)
            if step == start + 1:
                jax.block_until_ready(logged)
                progress.restart_clock(step)  # the first step's time is the compiler's
            last, stop = step == own.steps, terminated()
            evaluation_due = last or step % own.eval_every == 0
            saving_due = last or stop or step % own.save_every == 0
            if evaluation_due or saving_due:
                settle(*unread)
                unread = None
                # The evaluation first: a run that resumes from this step does not come by it again.
                if evaluation_due:
                    _validate(config, stage, eval_step, current, mesh, progress, step, directory)
                if saving_due:
                    checkpoints.save(current)
                progress.restart_clock(step)
            if stop:
                checkpoints.wait()
                _log.info("%s: saved at step %d and stopping, as SIGTERM asks", stage, step)
                raise SystemExit(143)


def _validate(
    config: Config,
    stage: str,
    eval_step: Callable,
    current: state.TrainState,
    mesh: Mesh,
    progress: Progress,
    step: int,
    directory: Path,
) -> None:
    own = config[stage]
    total: metrics.Totals = {}
    seen = 0
    for batch in data.eval_batches(
        config.data,
        "validation",
        batch_size=own.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ):
        logged, colored = eval_step(current.params, current.stats, state.to_devices(batch, mesh))
        if not total and colored is not None:
            _save_panel(config, batch, colored, progress, step, directory)
        logged = jax.device_get(logged)
        total = metrics.add(total, logged) if total else logged
        seen += own.batch_size
        if 0 < own.eval_photos <= seen:
            break
    if not total:
        raise ValueError("the validation split is empty; lower data.train_fraction")
    progress.validation(step, metrics.mean(total))


def _save_panel(
    config: Config,
    batch: data.Batch,
    colored: jax.Array,
    progress: Progress,
    step: int,
    directory: Path,
) -> None:
    if jax.process_index() != 0:
        return
    predicted = state.local_rows(colored)[:_PANEL_PHOTOS]
    true = np.asarray(steps.cropped(batch["image"], config))[:_PANEL_PHOTOS]
    picture = report.panel(true, {"predicted": predicted})
    path = directory / "panels" / f"{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)
    progress.picture(step, "gray | predicted | true", picture)


def _maker(config: Config, stage: str, classes: int) -> Callable[[jax.Array], nnx.Module]:
    model = Classifier if stage == "pretrain" else Colorizer
    size = config.data.image_size
    return lambda key: model(config.model, classes=classes, image_size=size, rngs=nnx.Rngs(key))


def _teacher_head(config: Config) -> Tree:
    """The initial linear map of the global vector to the teacher's features."""
    shape = (scaled(512, config.model.width), efficientnet.FEATURES)
    # Of another key than the model's.
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return {"kernel": nnx.initializers.lecun_normal()(key, shape), "bias": jnp.zeros(shape[1])}


def _grafted(config: Config, workdir: Path, params: Tree, stats: Tree) -> tuple[Tree, Tree]:
    if not config.joint.init_from and config.pretrain.steps == 0:
        return params, stats
    source, carriable = Path(config.joint.init_from or workdir), SHARED
    if config.joint.init_from and is_portable(source):
        # An exported colorizer has all of the networks to give.
        exported = load_trained(source)
        step, pretrained_params, pretrained_stats = exported.step, exported.params, exported.stats
        carriable = tuple(params)
    else:
        source = source / "pretrain" / "checkpoints"
        try:
            step, pretrained_params, pretrained_stats = checkpointing.load(source)
        except FileNotFoundError as error:
            raise ValueError(
                f"the joint stage starts from a pretrained classifier, but there is {error}; train with "
                "stage=pretrain first, set joint.init_from to a pretrained workdir or an exported folder, or set "
                "pretrain.steps=0 to start from scratch"
            ) from error
    if not config.joint.init_from and step < config.pretrain.steps:
        raise ValueError(
            f"the pretraining in {workdir} stands at step {step} of {config.pretrain.steps}; finish it "
            "with stage=pretrain, or set joint.init_from to take it as it is"
        )
    carried = config.joint.carried
    if not set(carried) <= set(carriable):
        raise ValueError(f"joint.carried is {tuple(carried)}; it can only name {', '.join(carriable)}")
    _log.info("joint: %s from %s, step %d", ", ".join(carried), source, step)
    return (
        checkpointing.graft(params, pretrained_params, networks=carried, what="parameters"),
        checkpointing.graft(stats, pretrained_stats, networks=carried, what="statistics"),
    )


@contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, which all hosts learn of at the same step."""
    if jax.process_count() > 1:
        # The coordination service of jax.distributed catches the signal, on whichever host.
        # It names a step shortly ahead, by a number that must grow: a stage's own would start anew.
        asked = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(asked))
        return
    came = False

    def note(signum: int, frame: object) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
    # It came after the last step, when there was nothing left to stop here.
    if came and callable(before):
        before(signal.SIGTERM, None)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
