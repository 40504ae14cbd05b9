"""Evaluation of a finished run on a whole split, beside the answers that need no network.

`python -m colorjax.evaluate --workdir=…` prints a table and writes into `<workdir>/evaluation/<split>/`:

    metrics.json     every answer's means, with bootstrap intervals; the sweep of temperatures, if one was asked for
    per_photo.csv    the model's measures of every photo, in the split's order
    per_class.csv    their means by class
    panel.png        the split's first photos: gray | predicted | true
    best_worst.png   the best, median and worst of the model's photos by ΔE2000
"""

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from colorjax import bootstrap, checkpointing, data, passes, report, state, training
from colorjax import frechet as frechet_of
from colorjax.answers import ANSWERS, FEATURES, Photos, Scores, at_temperature, make_judge, make_step
from colorjax.config import Config, load_config
from colorjax.data.batches import Share
from colorjax.judges import efficientnet, inception, lpips
from colorjax.judges.weights import Weights
from colorjax.prior import Prior
from colorjax.progress import log_to_terminal
from colorjax.trained import is_portable, load_trained

_log = logging.getLogger("colorjax.evaluate")  # also when it is run as __main__

COLUMNS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "colorfulness": "colourfulness",
    "colorfulness_difference": "its difference",
    "colorfulness_error": "its error",
    "auc": "AuC %",
    "auc_rebalanced": "AuC rebalanced %",
    "delta_e": "ΔE2000",
    "mean_a": "mean a",
    "mean_b": "mean b",
    "mean_color_distance": "distance to the mean colour",
    "color_ce": "colour CE",
    "color_loss": "weighted CE",
    "lpips": "LPIPS",
    "top1": "top-1",
    "top5": "top-5",
}
"""Metric -> its heading, in the table's order."""

PER_PHOTO = (
    "psnr",
    "ssim",
    "colorfulness",
    "true_colorfulness",
    "colorfulness_error",
    "auc",
    "auc_rebalanced",
    "delta_e",
    "mean_a",
    "mean_b",
    "mean_color_distance",
    "color_ce",
    "color_loss",
    "top1",
    "top5",
    "lpips",
)
"""The model's columns of per_photo.csv and per_class.csv; empty where a model has no such measure."""

DISTANCES = {
    "efficientnet": "Fréchet distance of EfficientNet-Lite0 features",
    "inception": "FID",
}
"""Network -> what the Fréchet distance of its features is called."""

_LEFT_OUT = {
    "lpips": "LPIPS, for which --lpips_weights gives the weights",
    "inception": "FID, for which --inception_weights gives the weights",
    "efficientnet": "the Fréchet distance of EfficientNet-Lite0 features, for which there is --frechet",
}

_PANEL_PHOTOS = 12
_BEST_WORST = 6  # photos of each kind
_BY = "delta_e"  # ascending is best first


def evaluate(
    workdir: str | Path,
    *,
    split: str = "test",
    data_dir: str | None = None,
    temperature: float | Sequence[float] | None = None,
    frechet: bool = False,
    lpips_weights: str | Path | None = None,
    inception_weights: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluates a run's newest joint checkpoint, or its classifier where the joint stage has none yet.

    Photos are centre crops; each is counted once, whatever the batch size and the number of devices and hosts. A metric
    is a number of a photo (answers.make_step), and a row holds its means over photos. To them come the difference of
    colourfulness, prediction − truth, and its error, the absolute difference, each photo with itself.

    Args:
        workdir: of `training.train`; or a portable folder, whose prior is counted into it where it has none.
        split: train, validation or test.
        data_dir: where the photographs lie now; None is the run's own data.dir.
        temperature: of the annealed mean; None is the run's own. Several are a sweep: the rows are those of the run's
            own temperature, and the record also says at which one predicted and true colourfulness agree.
        frechet: whether to take the Fréchet distance of EfficientNet-Lite0 features between predicted and true photos.
        lpips_weights: file of the standard weights of LPIPS over AlexNet (judges.lpips.load); None leaves LPIPS out.
        inception_weights: file of FID's standard weights (judges.inception.load); None leaves FID out.

    Returns:
        Answer ("model", "prior", "mean colour", "gray", "truth") -> metric -> mean. metrics.json holds the same under
        `rows`, and under `intervals` the bootstrap's 95 % interval [low, high] of each.

    Raises:
        FileNotFoundError: if the workdir holds no run, or no finished checkpoint.
        ValueError: if there is no photo, weights cannot be used, or something is asked for that the model has not.
        ImportError: for `frechet` without the package that has the weights.
    """
    workdir = Path(workdir).absolute()
    config = load_config(workdir)
    if data_dir is not None:
        with config.unlocked():
            config.data.dir = data_dir
    portable = is_portable(workdir)
    if portable:
        with config.unlocked():
            config.data.prior = ""  # the folder's own, for the path was another machine's
    stage = "joint" if portable or checkpointing.exists(workdir / "joint" / "checkpoints") else "pretrain"
    own, sweep = _temperatures(config, stage, temperature)
    judges = _judges(stage, frechet=frechet, lpips_weights=lpips_weights, inception_weights=inception_weights)
    mesh = state.make_mesh()
    info = data.dataset_info(config.data)
    program = training.build_program(config, stage, classes=len(info.class_names))
    if portable:
        trained = load_trained(workdir)
        step, trees = trained.step, [trained.params, trained.stats]
    else:
        step, *trees = checkpointing.load(workdir / stage / "checkpoints")
    resident = jax.device_put((*trees, judges), state.replicated(mesh))
    prior = None
    if stage == "joint":
        training.load_reference(config, workdir)  # counts the prior where it is missing
        prior = Prior.load(training.prior_path(config, workdir))
    jitted = make_step(program, config, prior=prior, temperature=own, sweep=sweep, mesh=mesh)
    judged = make_judge(mesh)

    def measure(batch: data.Batch) -> tuple[Scores, Photos]:
        params, stats, weights = resident
        measured, photos = jitted(params, stats, state.to_devices(batch, mesh))
        for answer, photo in photos.items() if weights else ():
            measured[answer] |= judged(weights, photo, photos["truth"])
        measured.get("truth", {}).pop("lpips", None)  # 0, of photos with themselves
        return measured, photos

    # Any number of devices may evaluate what any other has trained.
    devices = mesh.devices.size
    share = Share(-(-config[stage].batch_size // devices) * devices, jax.process_index(), jax.process_count())

    index, labels, scores = passes.scores(measure, config, split, share)
    if not len(index):
        raise ValueError(f"the {split} split of {info.name} has no photo that decodes")
    record = {
        "stage": stage,
        "step": step,
        "split": split,
        "photos": len(index),
        "temperature": own,
        "bootstrap": {"level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES},
    }
    record |= _means(scores, sweep) | _distances(scores)
    record["left_out"] = [what for name, what in _LEFT_OUT.items() if stage == "joint" and name not in judges]
    chosen = _chosen(scores["model"], index)
    pictures: dict[str, np.ndarray] = {}
    if chosen:
        first = min(_PANEL_PHOTOS, len(index))
        wanted = np.concatenate([np.arange(first), *(places for _, places in chosen)])
        raw = passes.photos(index[wanted], config, split, share)
        true, predicted = passes.colored(measure, raw, config, share)
        captions = [
            f"{kind}: CIEDE2000 {scores['model'][_BY][i]:.1f}\nphoto {index[i]}\n{info.class_names[labels[i]]}"
            for kind, places in chosen
            for i in places
        ]
        pictures["panel.png"] = report.panel(true[:first], {"predicted": predicted[:first]})
        pictures["best_worst.png"] = report.panel(true[first:], {"predicted": predicted[first:]}, captions=captions)

    if jax.process_index() == 0:
        directory = workdir / "evaluation" / split
        directory.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            Image.fromarray(picture).save(directory / name)
        _write_csvs(directory, index, labels, scores, info.class_names)
        # The last one: where it stands, the others do.
        (directory / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
        _log.info(
            "%s, step %d, on %d photos of %s %s; more in %s\n%s",
            stage,
            step,
            len(index),
            info.name,
            split,
            directory,
            as_text(record),
        )
        if config.data.source == "sample":
            _log.info(
                "The sample is crops of the few photographs that scikit-image ships, tested on regions of the same "
                "photographs: it shows that everything runs, not how well photographs are coloured."
            )
    return record["rows"]


def as_table(rows: dict[str, dict[str, float]], *, first: str = "answer") -> str:
    """The rows of `evaluate` as Markdown; a dash where a metric has no meaning.

    Args:
        rows: what the first column says -> metric -> mean.
        first: heading of the first column.
    """
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    return report.table(
        [first, *(COLUMNS[name] for name in columns)],
        [[answer, *(row.get(name, "–") for name in columns)] for answer, row in rows.items()],
    )


def as_text(record: dict[str, Any]) -> str:
    """What metrics.json holds, as Markdown tables."""
    model, intervals = record["rows"]["model"], record["intervals"]["model"]
    lines = [
        as_table(record["rows"]),
        "",
        f"The model's means, and their {100 * record['bootstrap']['level']:g} % intervals over photos:",
        report.table(
            ["metric", "mean", "low", "high"],
            [[COLUMNS[name], model[name], *intervals[name]] for name in COLUMNS if name in model],
        ),
    ]
    if "sweep" in record:
        agreeing = record["agreeing_temperature"]
        lines += [
            "",
            as_table(record["sweep"], first="T"),
            "No temperature of the sweep lies between too pale and too colourful: widen it."
            if agreeing is None
            else f"Predicted and true colourfulness agree at T = {agreeing:.3g}.",
        ]
    if distances := record.get("frechet"):
        answers = [*next(iter(distances.values()))]
        lines += [
            "",
            report.table(
                ["answer", *(DISTANCES[network] for network in distances)],
                [[answer, *(row[answer] for row in distances.values())] for answer in answers],
            ),
        ]
    if record["left_out"]:
        lines += ["", f"Left out: {'; '.join(record['left_out'])}."]
    return "\n".join(lines)


def agreeing_temperature(differences: dict[float, float]) -> float | None:
    """The temperature at which the mean difference of colourfulness is 0, by linear interpolation.

    Args:
        differences: temperature -> predicted − true colourfulness.

    Returns:
        The lowest such temperature; None where no two neighbours have it between them.
    """
    points = sorted(differences.items())
    for t, difference in points:
        if difference == 0:
            return t
    for (t0, d0), (t1, d1) in itertools.pairwise(points):
        if d0 * d1 < 0:
            return t0 + (t1 - t0) * d0 / (d0 - d1)
    return None


def _temperatures(
    config: Config, stage: str, temperature: float | Sequence[float] | None
) -> tuple[float, tuple[float, ...]]:
    """The temperature of the rows, and those of the sweep."""
    if temperature is None:
        return config.decode.temperature, ()
    if stage != "joint" or config.model.head != "bins":
        raise ValueError(
            f"temperature={temperature} is for decoding colour classes, of which this run has none "
            f"(stage {stage}, model.head {config.model.head!r}); leave it out"
        )
    values = tuple(sorted({float(t) for t in np.atleast_1d(temperature)}))
    if not values or not all(0 <= t < np.inf for t in values):
        raise ValueError(f"temperature={temperature} must be 0 or more, one value or several")
    return (values[0], ()) if len(values) == 1 else (config.decode.temperature, values)


def _judges(
    stage: str, *, frechet: bool, lpips_weights: str | Path | None, inception_weights: str | Path | None
) -> dict[str, Weights]:
    judges: dict[str, Weights] = {}
    if stage != "joint" and (frechet or lpips_weights or inception_weights):
        raise ValueError("LPIPS and Fréchet distances judge colour photos, of which this run's classifier makes none")
    if frechet:
        judges["efficientnet"] = efficientnet.load()
    if lpips_weights:
        judges["lpips"] = lpips.load(lpips_weights)
    if inception_weights:
        judges["inception"] = inception.load(inception_weights)
    return judges


def _means(scores: Scores, sweep: tuple[float, ...]) -> dict[str, Any]:
    """The record's rows and intervals, of the answers and of the sweep; without the metrics that no photo has."""
    columns = {
        (answer, metric): row[metric]
        for answer, row in scores.items()
        for metric in COLUMNS
        if metric in row and np.isfinite(row[metric]).any()
    }
    table = np.stack([*columns.values()], axis=1).astype(np.float64)
    means = np.nanmean(table, axis=0)
    low, high = bootstrap.interval(table)
    rows: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for i, (answer, metric) in enumerate(columns):
        rows.setdefault(answer, {})[metric] = float(means[i])
        intervals.setdefault(answer, {})[metric] = [float(low[i]), float(high[i])]

    answers = [answer for answer in ANSWERS if answer in rows]
    record: dict[str, Any] = {"rows": {a: rows[a] for a in answers}, "intervals": {a: intervals[a] for a in answers}}
    if sweep:
        differences = {t: rows[at_temperature(t)]["colorfulness_difference"] for t in sweep}
        record |= {
            "sweep": {str(t): rows[at_temperature(t)] for t in sweep},
            "sweep_intervals": {str(t): intervals[at_temperature(t)] for t in sweep},
            "agreeing_temperature": agreeing_temperature(differences),
        }
    return record


def _distances(scores: Scores) -> dict[str, Any]:
    """The record's Fréchet distances from the true photos, network -> answer -> distance."""
    true = scores.get("truth", {})
    # jit hands dicts back in the order of their keys.
    answers = [*ANSWERS[:-1], *sorted(scores.keys() - set(ANSWERS))]
    distances = {
        network: {answer: frechet_of.distance(scores[answer][network], true[network]) for answer in answers}
        for network in FEATURES
        if network in true
    }
    return {"frechet": distances} if distances else {}


def _chosen(model: dict[str, np.ndarray], index: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Kind -> places in the scores of the model's best, median and worst photos."""
    if _BY not in model:
        return []
    order = np.argsort(model[_BY], kind="stable")
    count = min(_BEST_WORST, len(index))
    middle = (len(order) - count) // 2
    return [("best", order[:count]), ("median", order[middle : middle + count]), ("worst", order[-count:])]


def _write_csvs(
    directory: Path, index: np.ndarray, labels: np.ndarray, scores: Scores, class_names: Sequence[str]
) -> None:
    nothing = np.full(len(index), np.nan)
    table = np.stack([scores["model"].get(metric, nothing) for metric in PER_PHOTO], axis=1).astype(np.float64)
    report.write_csv(
        directory / "per_photo.csv",
        ["index", "label", "class", *PER_PHOTO],
        [[i, label, class_names[label], *row] for i, label, row in zip(index, labels, table.tolist(), strict=True)],
    )
    there = np.isfinite(table)
    members = labels[:, None] == np.arange(len(class_names))  # [N, classes]
    with np.errstate(invalid="ignore"):
        means = (members.T @ np.where(there, table, 0)) / (members.T.astype(np.float64) @ there)
    report.write_csv(
        directory / "per_class.csv",
        ["label", "class", "photos", *PER_PHOTO],
        [
            [label, class_names[label], count, *means[label].tolist()]
            for label, count in enumerate(members.sum(axis=0).tolist())
        ],
    )


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every setting is a --flag")
    log_to_terminal()
    state.keep_compiled_programs()
    values = flags.FLAGS
    try:
        temperature = [float(t) for t in values.temperature]
    except ValueError as error:
        raise app.UsageError(f"--temperature={','.join(values.temperature)}: {error}") from error
    evaluate(
        values.workdir,
        split=values.split,
        data_dir=values.data_dir,
        temperature=temperature or None,
        frechet=values.frechet,
        lpips_weights=values.lpips_weights,
        inception_weights=values.inception_weights,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The --workdir of train.py, or an exported folder of tensors.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which photos.")
    flags.DEFINE_string("data_dir", None, "Where the photographs lie now, if not in the run's own config.data.dir.")
    flags.DEFINE_list(
        "temperature", [], "Of the annealed mean, instead of the run's own; several, as 0.1,0.2,0.4, are a sweep."
    )
    flags.DEFINE_bool(
        "frechet", False, "Also the Fréchet distance of EfficientNet-Lite0 features, at 0.4 GFLOP a photo."
    )
    flags.DEFINE_string("lpips_weights", None, "Also LPIPS, with the weights in this .npz file.")
    flags.DEFINE_string("inception_weights", None, "Also FID, with the weights in this .npz file.")
    app.run(_main)
