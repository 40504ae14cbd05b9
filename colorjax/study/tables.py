"""The tables of a study's report."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from colorjax.evaluation import bootstrap
from colorjax.evaluation.summary import METRICS as DESCRIPTIONS
from colorjax.run.trees import flatten
from colorjax.study.comparison import BASELINE, METRICS, Summary, seed_deviation
from colorjax.study.plan import Run

# Fields that differ between runs without being a row's change.
_NOT_CHANGES = ("seed", "stage", "data.prior", "joint.init_from")
_NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table with a title and an explanation.

    Attributes:
        title: the heading.
        text: the explanation, or "".
        header: the columns' headings.
        rows: cells, of one or two lines.
        highlighted: (row, column) of the cells to highlight.
    """

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]
    highlighted: frozenset[tuple[int, int]] = frozenset()


def make_tables(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[Table]:
    """All tables that have rows."""
    tables = [
        _changes(runs),
        _means(summaries, runs),
        _differences(summaries),
        _glossary(summaries),
        _pretrainings(runs),
        _unfinished(runs),
    ]
    return [table for table in tables if table.rows]


def _changes(runs: Sequence[Run]) -> Table:
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.stage == "joint" and run.row not in configs:
            fields = flatten(json.loads(run.config.to_json()))
            configs[run.row] = {k: v for k, v in fields.items() if k not in _NOT_CHANGES}
    full = configs.get(BASELINE)
    rows = []
    for row, fields in configs.items():
        if full is None:
            text = f"unknown, since there is no run of `{BASELINE}`"
        else:
            changed = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in fields.items() if full.get(k) != v}
            text = ", ".join(f"{k}={v}" for k, v in changed.items()) or "nothing"
        rows.append([row, text])
    return Table("Rows", f"`{BASELINE}` is the configuration without changes.", ["row", "changes"], rows)


def _means(summaries: Sequence[Summary], runs: Sequence[Run]) -> Table:
    metrics = [name for name in METRICS if any(name in summary.mean for summary in summaries)]
    rows = []
    for summary in summaries:
        seeds = sum(status == "done" for status in summary.status.values())
        if not seeds:
            rows.append([summary.row, _status(summary), *[_NONE] * len(metrics)])
            continue
        cells = []
        for name in metrics:
            deviation = f" ± {summary.deviation[name]:.2g}" if name in summary.deviation else ""
            cells.append(f"{summary.mean[name]:.4g}{deviation}" if name in summary.mean else _NONE)
        rows.append([summary.row, str(seeds), *cells])
    deviations = seed_deviation(summaries)
    if deviations:
        cells = (f"± {deviations[name]:.2g}" if name in deviations else _NONE for name in metrics)
        rows.append(["between seeds", "", *cells])
    references, photos = _references(runs)
    for method, values in references.items():
        rows.append([method, "", *(f"{values[name]:.4g}" if name in values else _NONE for name in metrics)])
    return Table(
        "Results",
        f"Means over the {photos:,} test photos and over the seeds, ± the standard deviation of the seeds' means. "
        "`between seeds` is this standard deviation pooled over the rows with several seeds. Three baselines are "
        "reported: the annealed prior, the mean color and gray. The last line is the true photos.",
        ["row", "seeds", *(str(DESCRIPTIONS[name]) for name in metrics)],
        rows if metrics else [],
    )


def _references(runs: Iterable[Run]) -> tuple[dict[str, dict[str, float]], int]:
    """The results of the baselines and of the true photos, and the number of photos."""
    for run in runs:
        if run.stage == "joint" and run.status() == "done":
            record = json.loads((run.evaluation / "metrics.json").read_text())
            return {method: row for method, row in record["rows"].items() if method != "model"}, record["photos"]
    return {}, 0


def _differences(summaries: Sequence[Summary]) -> Table:
    compared = [summary for summary in summaries if summary.difference]
    metrics = [name for name in METRICS if any(name in summary.difference for summary in compared)]
    pooled = seed_deviation(summaries)
    rows, highlighted = [], set()
    for i, summary in enumerate(compared):
        deviations = {} if summary.same_training else pooled
        cells = []
        for j, name in enumerate(metrics):
            if name not in summary.difference:
                cells.append(_NONE)
                continue
            mean, low, high = summary.difference[name]
            cells.append(_with_interval(mean, low, high))
            least = 2 * math.sqrt(2 / len(summary.paired)) * deviations.get(name, 0.0)
            if (low > 0 or high < 0) and abs(mean) > least:
                highlighted.add((i, j + 2))
        rows.append([summary.row, str(len(summary.paired)), *cells])
    return Table(
        f"Differences to {BASELINE}",
        f"Row − {BASELINE}, with its {100 * bootstrap.LEVEL:g} % interval. Photos are paired with themselves, and runs "
        f"with the run of {BASELINE} of the same seed. The interval comes from {bootstrap.RESAMPLES:,} bootstrap "
        "resamples of the photos and, if there are several seeds, of the seeds. A single seed does not show how much "
        "training varies, and with two or three the intervals are too narrow. A difference is highlighted if its "
        "interval excludes 0 and it is larger than two standard deviations between seeds. (The second condition needs "
        f"rows with several seeds, and does not apply where {BASELINE}'s training is only decoded differently.) "
        "Cross-entropies of another output size are left out.",
        ["row", "seeds", *(str(DESCRIPTIONS[name]) for name in metrics)],
        rows,
        frozenset(highlighted),
    )


def _with_interval(mean: float, low: float, high: float) -> str:
    """Mean and interval in two lines, with two digits of the interval's width."""
    width = high - low
    decimals = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 0
    return f"{mean:+.{decimals}f}\n[{low:.{decimals}f}, {high:.{decimals}f}]"


def _glossary(summaries: Sequence[Summary]) -> Table:
    metrics = [name for name in METRICS if any(name in summary.mean for summary in summaries)]
    rows = [[str(DESCRIPTIONS[name]), DESCRIPTIONS[name].meaning] for name in metrics]
    return Table("Metrics", "↑: higher is better. ↓: lower is better.", ["metric", "meaning"], rows)


def _pretrainings(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        if run.stage == "pretrain":
            done = run.status() == "done"
            model = json.loads((run.evaluation / "metrics.json").read_text())["rows"]["model"] if done else {}
            rows.append(
                [run.name, run.status(), *(f"{model[k]:.4g}" if k in model else _NONE for k in ("top1", "top5"))]
            )
    return Table(
        "Pretraining",
        "The classifiers that joint stages start from, on the test photos.",
        ["run", "status", "top-1", "top-5"],
        rows,
    )


def _unfinished(runs: Sequence[Run]) -> Table:
    rows = [[run.name, run.status()] for run in runs if run.stage == "joint" and run.status() != "done"]
    return Table("Not finished", "", ["run", "status"], rows)


def _status(summary: Summary) -> str:
    return next((status for status in summary.status.values() if status != "pending"), "pending").split(":")[0]
