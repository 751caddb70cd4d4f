"""Plots as inline SVG: nothing to load, sharp on paper, told apart in black and white by form as well as by colour."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

INK, GRID, BLUE, ORANGE, GREY = "#222", "#ddd", "#1f5fa8", "#c4560e", "#777"
SMALL = (230, 150)  # width, height of one of several small charts side by side
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 20, 22  # margins of a small chart: room for the ticks' text
ROW, LABEL, PANEL = 20, 150, 190  # of an interval chart: height of a row, width of its label and of a panel
COLOURS = {"subject": BLUE, "model": BLUE, "other": GREY}


@dataclass(frozen=True)
class Curve:
    """Points to be joined by a line, or, with `marks`, to be drawn as marks on a dashed one."""

    x: Sequence[float]
    y: Sequence[float]
    marks: bool = False


@dataclass(frozen=True)
class Bar:
    """A row of an interval chart: its name, what kind it is (`subject`, `model`, `other`), and a value a panel."""

    name: str
    kind: str
    intervals: Mapping[str, Mapping[str, float]]


def line_chart(title: str, curves: Sequence[Curve], last_step: float, y_range: tuple[float, float]) -> Markup:
    """A small chart of `curves` over optimiser steps.

    Args:
        last_step: where the axis of the steps ends.
        y_range: lowest and highest y, so that charts side by side can be compared.
    """
    width, height = SMALL
    last_step = last_step or 1
    ticks = nice_ticks(*y_range, 3)
    low, high = min(ticks[0], y_range[0]), max(ticks[-1], y_range[1])

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        pixel_x = LEFT + (width - LEFT - RIGHT) * x / last_step
        return round(pixel_x, 1), round(height - BOTTOM - (height - TOP - BOTTOM) * (y - low) / ((high - low) or 1), 1)

    parts = [_text(0, 11, title, weight="600")]
    for tick in ticks:
        parts.append(_line(to_pixels(0, tick), to_pixels(last_step, tick), GRID))
        parts.append(_text(LEFT - 4, to_pixels(0, tick)[1] + 3, number(tick), "end"))
    for tick in [t for t in nice_ticks(0, last_step, 3) if t <= last_step]:
        parts.append(_text(to_pixels(tick, low)[0], height - 8, number(tick), "middle"))
    for curve in curves:
        points = [to_pixels(x, y) for x, y in zip(curve.x, curve.y) if math.isfinite(y)]
        colour, dash = (ORANGE, "3 3") if curve.marks else (BLUE, "")
        parts.append(_path(points, colour, dash))
        if curve.marks or len(points) < 3:
            parts += [_dot(x, y, colour, 3) for x, y in points]
    return _svg(width, height, title, parts)


def interval_chart(bars: Sequence[Bar], panels: Mapping[str, str]) -> Markup:
    """One row for each bar, a value with its interval, in one panel for each of `panels` (key -> title) from 0 on."""
    width, height = LABEL + PANEL * len(panels), 24 + ROW * len(bars) + 20
    parts = []
    for i, bar in enumerate(bars):
        weight = "600" if bar.kind == "subject" else "400"
        parts.append(_text(0, 24 + ROW * i + 14, bar.name, weight=weight))
    for p, (key, title) in enumerate(panels.items()):
        start, plot_width = LABEL + PANEL * p, PANEL - 36
        highest = max((bar.intervals[key]["high"] for bar in bars if key in bar.intervals), default=0) or 1
        ticks = nice_ticks(0, highest, 3)
        top = max(ticks[-1], highest)
        parts.append(_text(start, 12, title, weight="600"))
        for tick in ticks:
            x = start + plot_width * tick / top
            parts.append(_line((x, 20), (x, height - 18), GRID))
            parts.append(_text(x, height - 5, number(tick), "middle"))
        for i, bar in enumerate(bars):
            if key in bar.intervals:
                low, value, high = (start + plot_width * bar.intervals[key][k] / top for k in ("low", "value", "high"))
                y, colour = 24 + ROW * i + 10, COLOURS[bar.kind]
                parts.append(_line((low, y), (high, y), colour, 3 if bar.kind == "subject" else 1.5))
                parts.append(_dot(value, y, colour, 4, hollow=bar.kind == "model"))
    return _svg(width, height, ", ".join(panels.values()), parts)


def histogram(title: str, counts: Mapping[str, int]) -> Markup:
    """A bar for each entry, with its number above it."""
    width, height = 2 * SMALL[0], SMALL[1]
    highest, step = max(counts.values(), default=1) or 1, width / max(len(counts), 1)
    parts = [_text(0, 11, title, weight="600")]
    for i, (name, count) in enumerate(counts.items()):
        bar_height = (height - 32 - BOTTOM) * count / highest
        x, y = i * step + 2, height - BOTTOM - bar_height
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 4:.1f}" height="{bar_height:.1f}" fill="{BLUE}"/>')
        parts.append(_text(x + step / 2 - 2, y - 3, f"{count:,}", "middle"))
        parts.append(_text(x + step / 2 - 2, height - 8, name, "middle"))
    return _svg(width, height, title, parts)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that span low..high: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= span / count * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Short: 12000 -> 12k, .05 -> 0.05."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and value % (unit / 10) == 0):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> Markup:
    size = f'viewBox="-1 0 {width + 2:g} {height:g}" style="max-width:{width:g}px"'
    return Markup(f'<svg {size} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "400") -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _path(points: Sequence[tuple[float, float]], colour: str, dash: str) -> str:
    coords = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{coords}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>'


def _dot(x: float, y: float, colour: str, radius: float, hollow: bool = False) -> str:
    fill = "#fff" if hollow else colour
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
