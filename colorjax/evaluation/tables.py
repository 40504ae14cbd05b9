"""Tables as Markdown and as CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from colorjax import atomic


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table. Numbers have four significant digits; columns of words, and the first, are left-aligned."""
    cells = [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    left = [i == 0 or any(x[:1].isalpha() for x in column) for i, column in enumerate(zip(*cells, strict=True))]
    left = left or [True] * len(header)  # no rows
    lines = [
        "| " + " | ".join(h.ljust(w) for h, w in zip(header, widths, strict=True)) + " |",
        "|"
        + "|".join("-" * (w + 1) + ("-" if is_left else ":") for is_left, w in zip(left, widths, strict=True))
        + "|",
    ]
    for row in cells:
        padded = [x.ljust(w) if is_left else x.rjust(w) for is_left, x, w in zip(left, row, widths, strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join(lines)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a CSV table: numbers with seven digits, as float32 has, and an empty cell for a NaN."""

    def cell(x: object) -> object:
        return x if not isinstance(x, float) else "" if math.isnan(x) else f"{x:.7g}"

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cell(x) for x in row] for row in rows)
    atomic.write_text(path, text.getvalue())
