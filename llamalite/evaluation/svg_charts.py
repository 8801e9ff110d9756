"""Three kinds of chart as SVG text, for a page that needs neither a network nor matplotlib.

Each function takes plain numbers and returns one ``<svg>`` element, whose text has the colour of the page's text. Zero,
which a logarithmic axis cannot show, is drawn at its lower end. `colour` is the index in `COLOURS` of the first series,
so that a model has the same colour in charts with and without the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 46
COLOURS = ("#3b6fd4", "#d9822b", "#2f9e6e", "#c2477f", "#7a5bd0", "#8c8c2b", "#2b99b8", "#b0533c")


def scatter(points: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, colour: int = 0) -> str:
    """Draw named points (label, x, y); y is logarithmic."""
    x_place, x_ticks = _linear([0.0, *(x for _, x, _ in points)], _LEFT, WIDTH - _RIGHT - 40)
    y_place, y_ticks = _logarithmic([y for _, _, y in points], HEIGHT - _BOTTOM, _TOP)
    marks = []
    text_y = _apart([(x_place(x), y_place(y) + 4) for _, x, y in points])
    for (i, (label, x, y)), below in zip(enumerate(points, colour), text_y, strict=True):
        fill = COLOURS[i % len(COLOURS)]
        marks.append(f'<circle cx="{x_place(x):.1f}" cy="{y_place(y):.1f}" r="5" fill="{fill}"/>')
        marks.append(_text(x_place(x) + 8, below, label))
    return _svg([*_axes(x_place, x_ticks, y_place, y_ticks, x_label, y_label), *marks])


def lines(
    series: Sequence[tuple[str, Sequence[float]]], ticks: Sequence[str], *, x_label: str, y_label: str, colour: int = 0
) -> str:
    """Draw one line for each named series; `ticks` label the places along x; y is logarithmic."""
    step = (WIDTH - _LEFT - _RIGHT - 90) / max(1, len(ticks) - 1)

    def x_place(i: float) -> float:
        return _LEFT + 12 + i * step

    y_place, y_ticks = _logarithmic([v for _, values in series for v in values], HEIGHT - _BOTTOM, _TOP)
    marks = []
    text_y = _apart([(0.0, y_place(values[-1]) + 4) for _, values in series])
    for (i, (label, values)), below in zip(enumerate(series, colour), text_y, strict=True):
        stroke = COLOURS[i % len(COLOURS)]
        places = " ".join(f"{x_place(n):.1f},{y_place(v):.1f}" for n, v in enumerate(values))
        marks.append(f'<polyline points="{places}" fill="none" stroke="{stroke}" stroke-width="2"/>')
        marks.append(_text(x_place(len(values) - 1) + 6, below, label, stroke))
    x_ticks = [(float(i), tick) for i, tick in enumerate(ticks)]
    return _svg([*_axes(x_place, x_ticks, y_place, y_ticks, x_label, y_label), *marks])


def bars(rows: Sequence[tuple[str, float]], *, x_label: str) -> str:
    """Draw one horizontal bar for each named value, from zero."""
    left, step = 150, 26
    height = len(rows) * step + _TOP + _BOTTOM
    place, ticks = _linear([0.0, *(value for _, value in rows)], left, WIDTH - _RIGHT - 50)
    parts = [_text(place(value), height - _BOTTOM + 18, label, anchor="middle") for value, label in ticks]
    parts.append(_text((left + WIDTH) / 2, height - 8, x_label, anchor="middle"))
    for i, (label, value) in enumerate(rows):
        y = _TOP + i * step
        width = max(0.0, place(value) - left)
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{step - 8}" fill="{colour}" rx="2"/>')
        parts.append(_text(left - 6, y + 13, label, anchor="end"))
        parts.append(_text(place(value) + 5, y + 13, f"{value:,.1f}"))
    return _svg(parts, height)


def _apart(places: Sequence[tuple[float, float]], width: float = 60, height: float = 13) -> list[float]:
    """Return a y for each label at (x, y), moved down if the label would cover an earlier one."""
    placed: list[tuple[float, float]] = []
    for x, y in places:
        for _ in placed:
            y = max([y, *(b + height for a, b in placed if abs(a - x) < width and abs(b - y) < height)])
        placed.append((x, y))
    return [y for _, y in placed]


def _linear(
    values: Sequence[float], low: float, high: float
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    first, last = min(values), max(values)
    span = (last - first) or 1.0
    step = 10 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.2, 0.5, 1, 2) if span / (step * factor) <= 6)
    marks = [first + i * step for i in range(int(span / step) + 1)]
    return lambda value: low + (value - first) / span * (high - low), [(mark, f"{mark:g}") for mark in marks]


def _logarithmic(
    values: Sequence[float], low: float, high: float
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    shown = [value for value in values if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    last = max(last, first + 1)

    def place(value: float) -> float:
        exponent = math.log10(value) if value > 0 else first
        return low + (max(first, exponent) - first) / (last - first) * (high - low)

    every = 1 + (last - first) // 8
    return place, [(10.0**n, f"{10.0**n:g}") for n in range(first, last + 1, every)]


def _axes(
    x_place: Callable[[float], float],
    x_ticks: Sequence[tuple[float, str]],
    y_place: Callable[[float], float],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}" fill="none" stroke="currentColor"/>']
    for value, label in y_ticks:
        y = y_place(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="currentColor" opacity="0.15"/>')
        parts.append(_text(_LEFT - 6, y + 4, label, anchor="end"))
    parts += [_text(x_place(value), bottom + 18, label, anchor="middle") for value, label in x_ticks]
    parts.append(_text((_LEFT + WIDTH) / 2, HEIGHT - 8, x_label, anchor="middle"))
    parts.append(f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, y_label, anchor="middle")}</g>')
    return parts


def _text(x: float, y: float, text: str, colour: str = "currentColor", *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float = HEIGHT) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" xmlns="http://www.w3.org/2000/svg">\n{body}\n</svg>'
