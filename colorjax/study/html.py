"""The report of a study as one HTML page that needs no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from colorjax.run.workdir import metrics_file
from colorjax.study.charts import Line, chart
from colorjax.study.comparison import BASELINE
from colorjax.study.figure import encode
from colorjax.study.plan import Run
from colorjax.study.tables import Table
from colorjax.training.progress import read_records

_CHARTS = {
    "pretrain": (("train", "loss", "training loss"), ("validation", "accuracy", "validation accuracy")),
    "joint": (
        ("train", "loss", "training loss"),
        ("validation", "psnr", "validation PSNR, dB"),
        ("validation", "colorfulness", "validation colorfulness"),
    ),
}

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
td.highlighted { background: var(--mark); }
figure { display: grid; grid-template-columns: 11rem 1fr; align-items: center; margin: 0 0 4px; font-size: .82rem; }
figure img { width: 100%; display: block; }
@media (max-width: 40rem) { figure { grid-template-columns: 1fr; margin-bottom: .6rem; } }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 0 1.5rem; }
svg { width: 100%; height: auto; font-size: 10px; fill: currentColor; }
svg .title { font-size: 11px; } svg .grid { stroke: var(--line); } svg .axis { stroke: currentColor; fill: none; }
svg .curve { color: var(--own); fill: currentColor; } svg .baseline { color: var(--rest); }
svg polyline { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linejoin: round; }
"""


def page(heading: str, tables: Sequence[Table], strips: Mapping[str, np.ndarray], runs: Sequence[Run]) -> str:
    """The page.

    Args:
        heading: the line below the title.
        tables: see tables.make_tables.
        strips: see figure.strips.
        runs: the runs whose curves to draw.
    """
    parts = [f"<h1>Study</h1><p>{escape(heading)}</p>"]
    for table in tables:
        parts.append(f"<h2>{escape(table.title)}</h2>")
        parts += [f"<p>{escape(table.text).replace('`', '')}</p>"] if table.text else []
        words = " words" if len(table.header) == 2 else ""
        header = "".join(f"<th>{escape(x)}</th>" for x in table.header)
        parts.append(f'<div class="wide{words}"><table><tr>{header}</tr>')
        for i, row in enumerate(table.rows):
            cells = "".join(
                f"<td{' class=highlighted' if (i, j) in table.highlighted else ''}>"
                f"{escape(cell).replace(chr(10), '<br>')}</td>"
                for j, cell in enumerate(row)
            )
            parts.append(f"<tr>{cells}</tr>")
        parts.append("</table></div>")
    if strips:
        parts.append("<h2>The same test photos, colored by every row</h2>")
        for name, strip in strips.items():
            # Full chroma resolution, since the colors are what matters here.
            photo = base64.b64encode(encode(Image.fromarray(strip), "JPEG", quality=92, subsampling=0)).decode()
            parts.append(
                f"<figure><figcaption>{escape(name)}</figcaption>"
                f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{photo}"></figure>'
            )
    curves = _curves(runs)
    if curves:
        parts.append(f"<h2>Curves</h2><p>One line for each seed. {BASELINE} is gray where it has the same measure.</p>")
        parts += [f'<h3>{escape(row)}</h3><div class="charts">{"".join(charts)}</div>' for row, charts in curves]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Study</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _curves(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Row -> its charts: the training loss and validation metrics, with `full`'s curves in gray."""
    by_name: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.stage):  # the joint stages first
        by_name.setdefault(run.row if run.stage == "joint" else f"pretraining of {run.row}", []).append(run)
    full = by_name.get(BASELINE, [])
    curves = []
    for row, of_row in by_name.items():
        stage = of_row[0].stage
        charts = []
        for split, metric, title in _CHARTS[stage]:
            # Losses compare only if they are defined alike.
            baseline = full if row != BASELINE and stage == "joint" else []
            baseline = [
                run for run in baseline if metric != "loss" or _loss_definition(run) == _loss_definition(of_row[0])
            ]
            lines = [_line(run, split, metric, "baseline") for run in baseline]
            lines += [_line(run, split, metric, "own") for run in of_row]
            if any(line.css == "own" and line.x for line in lines):
                charts.append(chart(lines, title=title, x_label="step"))
        if charts:
            curves.append((row, charts))
    return curves


def _loss_definition(run: Run) -> list[Any]:
    model = run.config.model
    return [run.config.loss.to_json(), model.head, model.output_stride]


def _line(run: Run, split: str, metric: str, css: str) -> Line:
    x, y = [], []
    for record in read_records(metrics_file(run.workdir, run.stage)):
        if record["split"] == split and metric in record:
            x.append(record["step"])
            y.append(record[metric])
    return Line(x, y, css, run.name)
