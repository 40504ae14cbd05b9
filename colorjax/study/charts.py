"""Line charts as SVG for an HTML page, whose text color they use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 300, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 22, 30
_POINTS = 200  # in a line, at most


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        x, y: coordinates, of equal length; points that are not finite are left out.
        css: CSS class of the curve, which sets its color.
        label: text that the browser shows when the pointer rests on the curve.
    """

    x: Sequence[float]
    y: Sequence[float]
    css: str
    label: str = ""


def chart(lines: Sequence[Line], *, title: str, x_label: str) -> str:
    """Draws curves over common axes, as an `<svg>`; "" if there is no point.

    The y axis is logarithmic if the values are positive and span more than a factor of ten. A long curve is averaged in
    pieces.
    """
    curves = [(line, _thinned(line)) for line in lines]
    points = [point for _, curve in curves for point in curve]
    if not points:
        return ""
    x_low, x_high = _limits([x for x, _ in points])
    ys = [y for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) > 10 * min(ys)
    y_low, y_high = _limits([math.log10(y) for y in ys] if logarithmic else ys)

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if logarithmic else y
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<text class="title" x="{_LEFT}" y="14">{escape(title)}</text>']
    y_ticks = _log_ticks(y_low, y_high) if logarithmic else _ticks(y_low, y_high)
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in _ticks(x_low, x_high, most=4):
        x, _ = place(tick, ys[0])
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 13}" text-anchor="middle">{_short(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    for line, curve in curves:
        placed = [place(*point) for point in curve]
        drawn = f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>'
        if len(placed) <= 12:
            drawn += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in placed)
        tooltip = f"<title>{escape(line.label)}</title>" if line.label else ""
        parts.append(f'<g class="curve {escape(line.css)}">{tooltip}{drawn}</g>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _thinned(line: Line) -> list[tuple[float, float]]:
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    size = -(-len(points) // _POINTS) if points else 1
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Two to `most` round numbers between low and high."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Like _ticks, for a logarithmic axis: low and high are exponents of ten."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [d * 10.0**e for e in exponents for d in digits if low <= math.log10(d * 10.0**e) <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
