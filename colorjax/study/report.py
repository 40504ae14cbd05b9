"""Writes the report of a study: report.html, which needs no other file, report.md with figure.png, and report.csv.

It can be written at any time. Rows that are not finished are listed with their status.
"""

from collections.abc import Sequence
from pathlib import Path

from colorjax import atomic
from colorjax.evaluation.tables import markdown_table, write_csv
from colorjax.study import figure, html
from colorjax.study.comparison import METRICS, Summary, summarize
from colorjax.study.plan import Run
from colorjax.study.tables import Table, make_tables


def write(directory: Path, runs: Sequence[Run]) -> list[Summary]:
    """Writes the report of these runs, finished or not, into the study's folder.

    Raises:
        ValueError: two runs were evaluated on different photos, or a file is damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    summaries = summarize(runs)
    heading, tables = _heading(summaries), make_tables(runs, summaries)
    strips = figure.strips(_shown(runs))
    if strips:
        atomic.write_bytes(directory / "figure.png", figure.encode(figure.picture(strips), "PNG"))
    atomic.write_text(directory / "report.md", _markdown(heading, tables, has_figure=bool(strips)))
    atomic.write_text(directory / "report.html", html.page(heading, tables, strips, runs))
    write_csv(directory / "report.csv", *_csv(summaries))
    return summaries


def _heading(summaries: Sequence[Summary]) -> str:
    statuses = [status for summary in summaries for status in summary.status.values()]
    done, failed = statuses.count("done"), sum(status.startswith("failed") for status in statuses)
    seeds = sorted({seed for summary in summaries for seed in summary.status})
    rows = f"{len(summaries)} row{'s' if len(summaries) > 1 else ''}"
    numbers = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    text = f"{done} of {len(statuses)} runs are done: {rows}, {numbers}"
    return text + (f"; {failed} failed." if failed else ".")


def _shown(runs: Sequence[Run]) -> dict[str, Run]:
    """Row -> its run with the lowest seed that has colored photos."""
    shown: dict[str, Run] = {}
    for run in runs:
        if run.stage == "joint" and figure.has_photos(run):
            shown.setdefault(run.row, run)
    return shown


def _csv(summaries: Sequence[Summary]) -> tuple[list[str], list[list[object]]]:
    header = [
        "row",
        "seeds_done",
        "seeds",
        "metric",
        "mean",
        "seed_deviation",
        "difference",
        "low",
        "high",
        "paired_seeds",
    ]
    rows: list[list[object]] = []
    undefined = float("nan")
    for summary in summaries:
        done = sum(status == "done" for status in summary.status.values())
        for name in METRICS if done else ():
            if name in summary.mean:
                difference = summary.difference.get(name, (undefined,) * 3)
                deviation = summary.deviation.get(name, undefined)
                paired = len(summary.paired) if name in summary.difference else 0
                rows.append(
                    [summary.row, done, len(summary.status), name, summary.mean[name], deviation, *difference, paired]
                )
        if not done:
            rows.append([summary.row, 0, len(summary.status), "", *[undefined] * 5, 0])
    return header, rows


def _markdown(heading: str, tables: Sequence[Table], *, has_figure: bool) -> str:
    parts = ["# Study", heading]
    for table in tables:
        rows = [
            [f"**{cell}**" if (i, j) in table.highlighted else cell for j, cell in enumerate(row)]
            for i, row in enumerate([[cell.replace("\n", " ") for cell in row] for row in table.rows])
        ]
        parts += [f"## {table.title}", *([table.text] if table.text else []), markdown_table(table.header, rows)]
    if has_figure:
        parts += ["## The same test photos, colored by every row", "![Gray, every row, truth](figure.png)"]
    return "\n\n".join(parts) + "\n\nThe curves are in report.html.\n"
