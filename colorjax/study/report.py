"""One report of a study: report.html, which needs no other file, report.md with figure.png, and report.csv.

It can be written at any time; a row that is not finished stands in it with how far it is.
"""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colorjax.evaluation import bootstrap
from colorjax.evaluation.evaluate import COLUMNS
from colorjax.evaluation.tables import markdown_table, write_csv
from colorjax.run.trees import flatten
from colorjax.run.workdir import metrics_file
from colorjax.study import figure
from colorjax.study.charts import Line, chart
from colorjax.study.comparison import BASELINE, METRICS, Summary, seed_spread, summarize
from colorjax.study.plan import Run

_BETTER = {
    "psnr": "↑",
    "ssim": "↑",
    "auc": "↑",
    "auc_rebalanced": "↑",
    "top1": "↑",
    "top5": "↑",
    "colorfulness_error": "↓",
    "delta_e": "↓",
    "color_ce": "↓",
    "color_loss": "↓",
}
# What differs between the runs of a study without being what a row changes.
_NOT_CHANGED = ("seed", "stage", "data.prior", "joint.init_from")
_CHARTS = {
    "pretrain": (("train", "loss", "training loss"), ("validation", "accuracy", "validation accuracy")),
    "joint": (
        ("train", "loss", "training loss"),
        ("validation", "psnr", "validation PSNR, dB"),
        ("validation", "colorfulness", "validation colorfulness"),
    ),
}
_NONE = "–"


@dataclass(frozen=True)
class _Table:
    """A heading, a text under it, and a table, whose cells may have two lines; `notable` are those (row, column) to set
    off."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]
    notable: frozenset[tuple[int, int]] = frozenset()


def write(directory: Path, runs: Sequence[Run]) -> list[Summary]:
    """Writes the report of these runs, finished or not, into the study's directory.

    Raises:
        ValueError: if two runs were evaluated on different photos, or a file is damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    summaries = summarize(runs)
    tables = [_changes(runs), _means(summaries, runs), _differences(summaries), _pretrainings(runs), _progress(runs)]
    tables = [table for table in tables if table.rows]
    strips = figure.strips(_shown(runs))
    if strips:
        _replace(directory / "figure.png", _encoded(figure.picture(strips), "PNG"))
    head = _head(summaries)
    _replace(directory / "report.md", _markdown(head, tables, bool(strips)).encode())
    _replace(directory / "report.html", _html(head, tables, strips, _curves(runs)).encode())
    write_csv(directory / "report.tmp", *_csv(summaries))
    (directory / "report.tmp").replace(directory / "report.csv")
    return summaries


def _head(summaries: Sequence[Summary]) -> str:
    statuses = [status for summary in summaries for status in summary.status.values()]
    done, failed = statuses.count("done"), sum(status.startswith("failed") for status in statuses)
    seeds = sorted({seed for summary in summaries for seed in summary.status})
    text = f"{done} of {len(statuses)} runs are done: {len(summaries)} rows, seeds {', '.join(map(str, seeds))}"
    return text + (f"; {failed} failed." if failed else ".")


def _changes(runs: Sequence[Run]) -> _Table:
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.stage == "joint" and run.row not in configs:
            fields = flatten(json.loads(run.config.to_json()))
            configs[run.row] = {k: v for k, v in fields.items() if k not in _NOT_CHANGED}
    full = configs.get(BASELINE)
    rows = []
    for row, fields in configs.items():
        if full is None:
            what = "unknown, since there is no run of `full`"
        else:
            changed = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in fields.items() if full.get(k) != v}
            what = ", ".join(f"{k}={v}" for k, v in changed.items()) or "nothing"
        rows.append([row, what])
    return _Table(
        "What each row changes", f"Against `{BASELINE}`, which is the configuration as it is.", ["row", "changes"], rows
    )


def _means(summaries: Sequence[Summary], runs: Sequence[Run]) -> _Table:
    metrics = [name for name in METRICS if any(name in summary.mean for summary in summaries)]
    rows = []
    for summary in summaries:
        seeds = sum(status == "done" for status in summary.status.values())
        if not seeds:
            rows.append([summary.row, _status(summary), *[_NONE] * len(metrics)])
            continue
        cells = []
        for name in metrics:
            spread = f" ± {summary.spread[name]:.2g}" if name in summary.spread else ""
            cells.append(f"{summary.mean[name]:.4g}{spread}" if name in summary.mean else _NONE)
        rows.append([summary.row, str(seeds), *cells])
    chance = seed_spread(summaries)
    if chance:
        rows.append(
            ["another seed", "", *(f"± {chance[name]:.2g}" if name in chance else _NONE for name in metrics)],
        )
    record, photos = _answers(runs)
    for answer, values in record.items():
        rows.append([answer, "", *(f"{values[name]:.4g}" if name in values else _NONE for name in metrics)])
    return _Table(
        "What each row comes to",
        f"Means over the {photos:,} test photographs and over the seeds, ± the standard deviation of the seeds' means. "
        "Arrows point to the better; colorfulness is best near that of the truth. `another seed` is that standard "
        "deviation pooled over the rows with several seeds. The last lines are answers that need no network.",
        ["row", "seeds", *(f"{COLUMNS[name]} {_BETTER.get(name, '')}".strip() for name in metrics)],
        rows if metrics else [],
    )


def _answers(runs: Iterable[Run]) -> tuple[dict[str, dict[str, float]], int]:
    for run in runs:
        if run.stage == "joint" and run.status() == "done":
            record = json.loads((run.evaluation / "metrics.json").read_text())
            rows = record["rows"]
            return {answer: row for answer, row in rows.items() if answer != "model"}, record["photos"]
    return {}, 0


def _differences(summaries: Sequence[Summary]) -> _Table:
    compared = [summary for summary in summaries if summary.difference]
    metrics = [name for name in METRICS if any(name in summary.difference for summary in compared)]
    chance = seed_spread(summaries)
    rows, notable = [], set()
    for i, summary in enumerate(compared):
        by_seeds = {} if summary.same_training else chance
        cells = []
        for j, name in enumerate(metrics):
            if name not in summary.difference:
                cells.append(_NONE)
                continue
            mean, low, high = summary.difference[name]
            cells.append(_with_interval(mean, low, high))
            least = 2 * math.sqrt(2 / len(summary.paired)) * by_seeds.get(name, 0.0)
            if (low > 0 or high < 0) and abs(mean) > least:
                notable.add((i, j + 2))
        rows.append([summary.row, ", ".join(map(str, summary.paired)), *cells])
    return _Table(
        f"Difference to {BASELINE}",
        f"Row − {BASELINE}, with its {100 * bootstrap.LEVEL:g} % interval. Each photograph is paired with itself, and "
        f"each run with {BASELINE}'s of the same seed; {bootstrap.RESAMPLES:,} resamples draw photographs with "
        "replacement, the same for all seeds, and where there are several seeds draw seeds too; the interval is "
        "between the percentiles of the resampled means. One seed says nothing of how much training varies, and two or "
        "three say little: their intervals are too narrow. Set off are the intervals without 0, if the difference is "
        "also more than two of the standard deviations that two such runs differ by because of their seeds (where the "
        "study has rows with several seeds, and the row is not the baseline's training decoded otherwise). A "
        "cross-entropy of another output size is left out.",
        ["row", "seeds", *(f"{COLUMNS[name]} {_BETTER.get(name, '')}".strip() for name in metrics)],
        rows,
        frozenset(notable),
    )


def _with_interval(mean: float, low: float, high: float) -> str:
    """In two lines, with as many decimals as the interval's width makes two digits."""
    width = high - low
    decimals = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 0
    return f"{mean:+.{decimals}f}\n[{low:.{decimals}f}, {high:.{decimals}f}]"


def _pretrainings(runs: Sequence[Run]) -> _Table:
    rows = []
    for run in runs:
        if run.stage == "pretrain":
            done = run.status() == "done"
            model = json.loads((run.evaluation / "metrics.json").read_text())["rows"]["model"] if done else {}
            rows.append([run.name, run.status(), *(f"{model[k]:.4g}" if done else _NONE for k in ("top1", "top5"))])
    return _Table(
        "Pretraining",
        "The classifiers that joint stages start from, on the test photographs.",
        ["run", "is", "top-1", "top-5"],
        rows,
    )


def _progress(runs: Sequence[Run]) -> _Table:
    rows = [[run.name, run.status()] for run in runs if run.stage == "joint" and run.status() != "done"]
    return _Table("Not done", "", ["run", "is"], rows)


def _status(summary: Summary) -> str:
    return next((status for status in summary.status.values() if status != "pending"), "pending").split(":")[0]


def _shown(runs: Sequence[Run]) -> dict[str, Run]:
    """Row -> the run of its lowest seed whose photos are there."""
    shown: dict[str, Run] = {}
    for run in runs:
        if run.stage == "joint" and figure.is_there(run):
            shown.setdefault(run.row, run)
    return shown


def _curves(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Row -> its charts: the training loss and what validation said; `full`'s curves are gray beside them."""
    by_name: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.stage):  # the joint stages first
        by_name.setdefault(run.row if run.stage == "joint" else f"pretraining of {run.row}", []).append(run)
    full = by_name.get(BASELINE, [])
    made = []
    for row, of_row in by_name.items():
        stage = of_row[0].stage
        charts = []
        for split, metric, title in _CHARTS[stage]:
            # Two losses compare if they are defined alike.
            beside = full if row != BASELINE and stage == "joint" else []
            beside = [run for run in beside if metric != "loss" or _loss_of(run) == _loss_of(of_row[0])]
            lines = [_line(run, split, metric, "baseline") for run in beside]
            lines += [_line(run, split, metric, "own") for run in of_row]
            if any(line.css == "own" and line.x for line in lines):
                charts.append(chart(lines, title=title, x_label="step"))
        if charts:
            made.append((row, charts))
    return made


def _loss_of(run: Run) -> list[Any]:
    model = run.config.model
    return [run.config.loss.to_json(), model.head, model.output_stride]


def _line(run: Run, split: str, metric: str, css: str) -> Line:
    path = metrics_file(run.workdir, run.stage)
    x, y = [], []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(text)
        except json.JSONDecodeError:
            continue  # half-written
        if record["split"] == split and metric in record:
            x.append(record["step"])
            y.append(record[metric])
    return Line(x, y, css, run.name)


def _csv(summaries: Sequence[Summary]) -> tuple[list[str], list[list[object]]]:
    header = ["row", "seeds_done", "seeds", "metric", "mean", "spread", "difference", "low", "high", "paired_seeds"]
    rows: list[list[object]] = []
    nothing = float("nan")
    for summary in summaries:
        done = sum(status == "done" for status in summary.status.values())
        for name in METRICS if done else ():
            if name in summary.mean:
                difference = summary.difference.get(name, (nothing,) * 3)
                spread = summary.spread.get(name, nothing)
                paired = len(summary.paired) if name in summary.difference else 0
                rows.append(
                    [summary.row, done, len(summary.status), name, summary.mean[name], spread, *difference, paired]
                )
        if not done:
            rows.append([summary.row, 0, len(summary.status), "", *[nothing] * 5, 0])
    return header, rows


def _markdown(head: str, tables: Sequence[_Table], figure: bool) -> str:
    parts = ["# Study", head]
    for table in tables:
        rows = [
            [f"**{cell}**" if (i, j) in table.notable else cell for j, cell in enumerate(row)]
            for i, row in enumerate([[cell.replace("\n", " ") for cell in row] for row in table.rows])
        ]
        parts += [f"## {table.title}", *([table.text] if table.text else []), markdown_table(table.header, rows)]
    if figure:
        parts += ["## The same test photographs by every row", "![Gray, every row, truth](figure.png)"]
    return "\n\n".join(parts) + "\n\nThe curves are in report.html.\n"


_STYLE = """
:root { color-scheme: light dark; --own: #0b62c4; --rest: #767676; --line: #ddd; --mark: #fff3c4; }
@media (prefers-color-scheme: dark) { :root { --own: #6db3ff; --rest: #9a9a9a; --line: #444; --mark: #4a3f10; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: .95rem; margin: 1rem 0 .2rem; }
p { max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; } th:first-child, td:first-child { text-align: left; }
.words th, .words td { text-align: left; } .words td + td { white-space: normal; overflow-wrap: anywhere; }
td.notable { background: var(--mark); }
figure { display: grid; grid-template-columns: 11rem 1fr; align-items: center; margin: 0 0 4px; font-size: .82rem; }
figure img { width: 100%; display: block; }
@media (max-width: 40rem) { figure { grid-template-columns: 1fr; margin-bottom: .6rem; } }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 0 1.5rem; }
svg { width: 100%; height: auto; font-size: 10px; fill: currentColor; }
svg .title { font-size: 11px; } svg .grid { stroke: var(--line); } svg .axis { stroke: currentColor; fill: none; }
svg .curve { color: var(--own); fill: currentColor; } svg .baseline { color: var(--rest); }
svg polyline { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linejoin: round; }
"""


def _html(
    head: str,
    tables: Sequence[_Table],
    strips: Mapping[str, np.ndarray],
    curves: Sequence[tuple[str, Sequence[str]]],
) -> str:
    parts = [f"<h1>Study</h1><p>{escape(head)}</p>"]
    for table in tables:
        parts.append(f"<h2>{escape(table.title)}</h2>")
        parts += [f"<p>{escape(table.text).replace('`', '')}</p>"] if table.text else []
        words = " words" if len(table.header) == 2 else ""
        parts.append(
            f'<div class="wide{words}"><table><tr>{"".join(f"<th>{escape(x)}</th>" for x in table.header)}</tr>'
        )
        for i, row in enumerate(table.rows):
            cells = "".join(
                f"<td{' class=notable' if (i, j) in table.notable else ''}>{escape(cell).replace(chr(10), '<br>')}</td>"
                for j, cell in enumerate(row)
            )
            parts.append(f"<tr>{cells}</tr>")
        parts.append("</table></div>")
    if strips:
        parts.append("<h2>The same test photographs by every row</h2>")
        for answer, strip in strips.items():
            # Full chroma resolution, since color is what is looked at.
            photo = base64.b64encode(_encoded(Image.fromarray(strip), "JPEG", quality=92, subsampling=0)).decode()
            parts.append(
                f"<figure><figcaption>{escape(answer)}</figcaption>"
                f'<img alt="{escape(answer)}" src="data:image/jpeg;base64,{photo}"></figure>'
            )
    if curves:
        parts.append(f"<h2>Curves</h2><p>One line a seed; {BASELINE}'s in gray, where it is the same measure.</p>")
        parts += [f'<h3>{escape(row)}</h3><div class="charts">{"".join(charts)}</div>' for row, charts in curves]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Study</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _replace(path: Path, content: bytes) -> None:
    # Whole or not at all: somebody may be reading the one before.
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)
