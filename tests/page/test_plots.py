"""Inline SVG: well-formed, to scale, escaped."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_lite.page.plots import Bar, Curve, histogram, interval_chart, line_chart, nice_ticks, number


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter() if node.tag == "text"]


def test_a_curve_is_to_scale() -> None:
    root = ET.fromstring(line_chart("loss", [Curve([0, 50, 100], [4.0, 2.0, 0.0])], 100, (0.0, 4.0)))
    (line,) = root.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points[1] == pytest.approx(tuple((points[0][i] + points[2][i]) / 2 for i in (0, 1)), abs=0.1)
    assert points[0][0] < points[2][0]
    assert points[0][1] < points[2][1]  # y grows downwards


def test_what_is_no_number_is_left_out() -> None:
    root = ET.fromstring(line_chart("loss", [Curve([1, 2, 3], [1.0, float("nan"), 2.0], marks=True)], 3, (1, 2)))
    assert len(list(root.iter("circle"))) == 2


@pytest.mark.parametrize("curves", [[], [Curve([], [])], [Curve([0], [0.0])]])
def test_an_empty_log_makes_an_empty_chart(curves: list[Curve]) -> None:
    assert "loss" in texts(line_chart("loss", curves, 0, (0.0, 0.0)))


def test_intervals_are_to_scale_and_start_at_0() -> None:
    bars = [Bar("all", "subject", {"n": {"low": 0.0, "value": 0.5, "high": 1.0}}), Bar("none", "other", {})]
    root = ET.fromstring(interval_chart(bars, {"n": "N@10"}))
    (dot,) = root.iter("circle")
    bar = next(line for line in root.iter("line") if line.attrib["stroke-width"] == "3")
    assert float(dot.attrib["cx"]) == (float(bar.attrib["x1"]) + float(bar.attrib["x2"])) / 2
    grid = [float(line.attrib["x1"]) for line in root.iter("line") if line.attrib["stroke"] == "#ddd"]
    assert min(grid) == float(bar.attrib["x1"])


def test_text_is_escaped() -> None:
    for svg in (
        line_chart('"<script>', [], 1, (0, 1)),
        interval_chart([Bar('"<script>', "other", {})], {"n": "<b>"}),
        histogram('"<script>', {"<b>": 3}),
    ):
        ET.fromstring(svg)
        assert "<script" not in svg
        assert "<b" not in svg


def test_a_histogram_has_its_numbers() -> None:
    assert {"users", "1", "2-4", "1,200", "300"} <= set(texts(histogram("users", {"1": 1200, "2-4": 300})))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 5))
def test_ticks_span_the_range_and_are_few(low: float, span: float, count: int) -> None:
    high = low + span
    if high - low < abs(low) * 1e-9:
        return
    ticks = nice_ticks(low, high, count)
    assert ticks[0] <= low + span * 1e-6
    assert ticks[-1] >= high - span * 1e-6
    assert 2 <= len(ticks) <= count + 3
    assert ticks == sorted(set(ticks))


def test_short_numbers() -> None:
    assert [number(x) for x in (0, 0.05, 950, 2000, 12000, 2.5e6, 1234)] == [
        "0",
        "0.05",
        "950",
        "2k",
        "12k",
        "2.5M",
        "1234",
    ]
