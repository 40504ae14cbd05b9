"""Evaluates a trained model on a whole split, beside three baselines: the annealed prior, the mean color and gray.

`colorjax evaluate --workdir=…` prints a table and writes into `<workdir>/evaluation/<split>/`, or into `--out`:

    metrics.json     means and bootstrap intervals of every method, and the sweep of temperatures if there is one
    per_photo.csv    the model's metrics of every photo, in the split's order
    per_class.csv    their means by class
    panel.png        the split's first photos: gray | predicted | true
    reliability.svg  with `calibration`: how often the likeliest color is right, by its probability
    best_worst.png   the model's best, median and worst photos by ΔE2000
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from colorjax import atomic, data
from colorjax.data.batches import Share, eval_batch_size
from colorjax.evaluation import bootstrap, report, split_pass
from colorjax.evaluation.calibration import calibrate, chart
from colorjax.evaluation.judges import efficientnet, inception, lpips
from colorjax.evaluation.judges.weights import Weights
from colorjax.evaluation.measures import Photos, Scores, make_judge, make_measure
from colorjax.evaluation.summary import summarize
from colorjax.model.decode import make_decoder
from colorjax.model.program import Program, Tree, build_program
from colorjax.run import portable, sharding
from colorjax.run.checkpoints import load_checkpoint
from colorjax.run.config import Config
from colorjax.run.locate import SHIPPED, locate
from colorjax.run.pictures import panel
from colorjax.run.prior import load_prior
from colorjax.run.trained import load_trained
from colorjax.run.trees import checksum
from colorjax.run.workdir import (
    checkpoint_dir,
    evaluation_dir,
    latest_step,
    load_class_names,
    load_config,
    local_path,
    prior_file,
)

_log = logging.getLogger(__name__)

_NOT_ASKED_FOR = {
    "lpips": "LPIPS (--lpips-weights)",
    "inception": "FID (--inception-weights)",
    "efficientnet": "the Fréchet distance of EfficientNet-Lite0 features (--frechet)",
}
_PANEL_PHOTOS = 12
_BEST_WORST = 6  # photos of each kind
_BY = "delta_e"  # orders the photos, ascending from the best


def evaluate(
    workdir: str | Path,
    *,
    split: str = "test",
    data_dir: str | None = None,
    out: str | Path | None = None,
    temperature: float | Sequence[float] | None = None,
    frechet: bool = False,
    lpips_weights: str | Path | None = None,
    inception_weights: str | Path | None = None,
    calibration: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluates a run's newest colorizer, the colorizer in a portable folder, or else a run's newest classifier.

    Photos are center crops. Each counts once, whatever the batch size and the number of devices and hosts. The metrics
    of a photo are those of measures.make_measure, and the difference of colorfulness, predicted − true, with its
    absolute value. If the data's classes are not the model's, top-1 and top-5 are left out.

    Args:
        workdir: of `train`; or a portable folder. If that has no prior.npz, the prior is counted into `out`. Text may
            be the name of weights that ship.
        split: train, validation or test.
        data_dir: where the photos are; None is the run's own data.dir.
        out: the folder to write into; None is `<workdir>/evaluation/<split>`. Weights that ship need one.
        temperature: of the annealed mean; None is the run's own. Several are a sweep: the rows stay those of the run's
            own temperature, and the record also has the temperature at which predicted and true colorfulness agree.
        frechet: whether to compute the Fréchet distance between EfficientNet-Lite0 features.
        lpips_weights: file of LPIPS' weights (see judges.lpips.load); None leaves LPIPS out.
        inception_weights: file of FID's weights (see judges.inception.load); None leaves FID out.
        calibration: whether to measure how far the probabilities of the color classes can be trusted; the validation
            split is read too.

    Returns:
        Method ("model", "prior", "mean color", "gray", "truth") -> metric -> mean. metrics.json holds the same under
        `rows`, and 95 % bootstrap intervals [low, high] under `intervals`.

    Raises:
        FileNotFoundError: the workdir holds no run or no finished checkpoint, or a file of weights does not exist.
        ValueError: an argument or a file is wrong, no photo decodes, or the model's outputs are not finite.
        ImportError: the package for `frechet` is not installed.
        PermissionError: nothing can be written to `out`.
    """
    workdir = locate(workdir)
    if out is None and workdir.is_relative_to(SHIPPED):
        raise ValueError(f"out is missing: give --out=FOLDER, since {workdir} belongs to the package")
    directory = evaluation_dir(workdir, split) if out is None else local_path(out)
    if jax.process_index() == 0:
        atomic.require_writable(directory)
    config = load_config(workdir)
    is_portable = portable.is_portable(workdir)
    with config.unlocked():
        config.data.dir = config.data.dir if data_dir is None else data_dir
        if is_portable:
            config.data.prior = ""  # the path was on another machine
    stage = "joint" if is_portable or latest_step(workdir, "joint") is not None else "pretrain"
    own, sweep = _temperatures(config, stage, temperature)
    with config.unlocked():
        config.decode.temperature = own
    if calibration and (stage != "joint" or config.model.head != "bins"):
        raise ValueError(
            f"--calibration is for models with color classes, unlike this one (stage {stage}, "
            f"model.head {config.model.head!r}): leave it out"
        )
    judges = _judges(stage, frechet=frechet, lpips_weights=lpips_weights, inception_weights=inception_weights)
    program, class_names, step, *trees = _load(config, stage, workdir)
    info = data.dataset_info(config.data)
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
    prior = None
    if stage == "joint":
        own_prior = not is_portable or prior_file(config, workdir).exists()
        prior = load_prior(config, workdir if own_prior else directory)

    mesh = sharding.make_mesh()
    params, stats, weights = jax.device_put((*trees, judges), sharding.replicated(mesh))
    measure_photos = make_measure(program, config, prior=prior, sweep=sweep, mesh=mesh)
    judge = make_judge(mesh)

    def measure(batch: data.Batch) -> tuple[Scores, Photos]:
        scores, photos = measure_photos(params, stats, sharding.to_devices(batch, mesh))
        for method, photo in photos.items() if judges else ():
            scores[method] |= judge(weights, photo, photos["truth"])
        scores.get("truth", {}).pop("lpips", None)  # it is 0
        return scores, photos

    share = Share(eval_batch_size(mesh.devices.size), jax.process_index(), jax.process_count())
    if jax.process_index() == 0:
        _log.info("evaluating step %d of the %s stage on %s %s; it compiles first", step, stage, info.name, split)
    index, labels, scores = split_pass.scores(measure, config, split, share)
    if not len(index):
        raise ValueError(f"the {split} split of {info.name} has no photo that decodes")
    _require_finite(scores["model"].pop("finite"), index, source=f"{workdir}, {stage} step {step}")
    left_out = [name for judge, name in _NOT_ASKED_FOR.items() if stage == "joint" and judge not in judges]
    if class_names != info.class_names:
        if stage == "pretrain":
            raise ValueError(
                f"the classes of {info.name} are not those that {workdir} was trained on ({workdir / 'classes.json'}): "
                "give the original photos with --data-dir"
            )
        for metric in ("top1", "top5"):
            scores["model"].pop(metric, None)
        left_out.append("top-1 and top-5, since the photos' classes are not the model's")
    record = {
        "stage": stage,
        "step": step,
        "split": split,
        "photos": len(index),
        "temperature": own,
        "unweighting": config.decode.unweighting,
        "saturation": config.decode.saturation,
        "bootstrap": {"level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES},
        "judges": {name: checksum(judges[name]) for name in judges},
        **summarize(scores, sweep),
        "left_out": left_out,
    }
    if calibration:
        assert prior is not None
        options = {"decoder": make_decoder(config, prior.p), "split": split, "share": share, "mesh": mesh}
        record["calibration"] = calibrate(program, params, stats, config, **options)
    pictures: dict[str, np.ndarray] = {}
    if stage == "joint":
        extremes = _extremes(scores["model"][_BY])
        first = min(_PANEL_PHOTOS, len(index))
        wanted = np.concatenate([np.arange(first), *(places for _, places in extremes)])
        raw = split_pass.photos(index[wanted], config, split, share)
        true, predicted = split_pass.colored(measure, raw, config, share)
        captions = [
            f"{kind}: ΔE2000 {scores['model'][_BY][i]:.1f}\nphoto {index[i]}\n{info.class_names[labels[i]]}"
            for kind, places in extremes
            for i in places
        ]
        pictures["panel.png"] = panel(true[:first], {"predicted": predicted[:first]})
        pictures["best_worst.png"] = panel(true[first:], {"predicted": predicted[first:]}, captions=captions)

    if jax.process_index() == 0:
        if calibration:
            atomic.write_text(directory / "reliability.svg", chart(record["calibration"]))
        for name, picture in pictures.items():
            Image.fromarray(picture).save(directory / name)
        report.write(directory, record, index=index, labels=labels, scores=scores, class_names=info.class_names)
        _log.info(
            "%s stage, step %d, on %d photos of %s %s:\n%s\nMore in %s",
            stage,
            step,
            len(index),
            info.name,
            split,
            report.as_text(record),
            directory,
        )
        if config.data.source == "sample":
            _log.info(
                "The sample's train and test photos are crops of the same few photographs from scikit-image. "
                "These numbers show that everything runs, not how well it colors."
            )
    return record["rows"]


def _load(config: Config, stage: str, workdir: Path) -> tuple[Program, tuple[str, ...], int, Tree, Tree]:
    """The program, class names, step, parameters and statistics."""
    if stage == "joint":
        trained = load_trained(workdir)
        return trained.program(), trained.class_names, trained.step, trained.params, trained.stats
    step, params, stats = load_checkpoint(checkpoint_dir(workdir, stage))
    class_names = load_class_names(workdir)
    return build_program(config, stage, classes=len(class_names)), class_names, step, params, stats


def _temperatures(
    config: Config, stage: str, temperature: float | Sequence[float] | None
) -> tuple[float, tuple[float, ...]]:
    """The temperature of the rows, and those of the sweep."""
    if temperature is None:
        return config.decode.temperature, ()
    if stage != "joint" or config.model.head != "bins":
        raise ValueError(
            f"temperature={temperature} is for models with color classes, unlike this one "
            f"(stage {stage}, model.head {config.model.head!r}): leave it out"
        )
    values = tuple(sorted({float(t) for t in np.atleast_1d(temperature)}))
    if not values or not all(0 <= t < np.inf for t in values):
        raise ValueError(f"temperature={temperature} must be 0 or more, one value or several")
    return (values[0], ()) if len(values) == 1 else (config.decode.temperature, values)


def _judges(
    stage: str, *, frechet: bool, lpips_weights: str | Path | None, inception_weights: str | Path | None
) -> dict[str, Weights]:
    if stage != "joint" and (frechet or lpips_weights or inception_weights):
        raise ValueError(
            "LPIPS and Fréchet distances need colored photos, and this run has only its classifier yet: leave out "
            "--frechet, --lpips_weights and --inception_weights"
        )
    judges: dict[str, Weights] = {}
    if frechet:
        judges["efficientnet"] = efficientnet.load()
    if lpips_weights:
        judges["lpips"] = lpips.load(lpips_weights)
    if inception_weights:
        judges["inception"] = inception.load(inception_weights)
    return judges


def _require_finite(finite: np.ndarray, index: np.ndarray, *, source: str) -> None:
    if not finite.all():
        raise ValueError(
            f"the model's outputs are not finite for {np.sum(~finite)} of {len(index)} photos, such as photo "
            f"{index[~finite][0]}: the weights are damaged ({source}); restore them or train again"
        )


def _extremes(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Kind -> indices of the best, median and worst photos."""
    order = np.argsort(values, kind="stable")
    count = min(_BEST_WORST, len(order))
    middle = (len(order) - count) // 2
    return [("best", order[:count]), ("median", order[middle : middle + count]), ("worst", order[-count:])]
