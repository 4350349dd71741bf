"""A plot of lines as SVG, both axes logarithmic."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 720, 420, 60
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8a6fb0", "#e09f3e", "#444444")


def svg(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """The text of a file; points are (x, y), all above zero."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x_axis, y_axis = _decades(xs), _decades(ys)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for decade in range(x_axis[0], x_axis[1] + 1):
        x = _place(10**decade, x_axis, MARGIN, WIDTH - 200)
        parts.append(f'<path d="M{x:.1f} 40V{HEIGHT - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{10**decade:,}</text>')
    for decade in range(y_axis[0], y_axis[1] + 1):
        y = _place(10**decade, y_axis, HEIGHT - MARGIN, 40)
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{WIDTH - 200}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{10**decade:,}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawn = " ".join(
            f"{_place(x, x_axis, MARGIN, WIDTH - 200):.1f},{_place(y, y_axis, HEIGHT - MARGIN, 40):.1f}"
            for x, y in points
        )
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{WIDTH - 190}" y="{60 + 20 * number}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _place(value: float, axis: tuple[int, int], start: float, end: float) -> float:
    return start + (math.log10(value) - axis[0]) / (axis[1] - axis[0]) * (end - start)
