"""What a night costs: the tables of docs/scale.md, from the measured rates and that page's own price list."""

import re
from dataclasses import dataclass
from typing import Any

from calrec_lite.evaluate.tables import markdown

USERS = (1_000_000, 100_000_000, 1_000_000_000)
UNITS = (1, 8, 64)
NIGHT = 8  # hours
PRICE = re.compile(r"^\| `(\w+)` \|[^|]*\| ([\d.]+) \|", re.MULTILINE)
ROW = "scientific bf16"  # of train_*.json: the same model and data on both machines
OURS = "E"  # all targets, full objective
FORWARD = 3  # times as fast as forward and backward
ITEMS, ITEM_TOKENS = 100_000_000, 16  # with the start token
Facts = dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """Users a second of one unit, an H200 or a machine of 2 cores, and where the number is from."""

    what: str
    unit: str
    users: float
    source: str


def prices(page: str) -> dict[str, float]:
    """Unit -> price of an hour, as the page's list has it."""
    return {unit: float(price) for unit, price in PRICE.findall(page)}


def tables(page: str, demo: Facts, lists: Facts, train_cpu: Facts, train_cuda: Facts, scale_out: Facts) -> str:
    """All that the page has between its marks."""
    price, cuda = prices(page), train_cuda["throughput"][ROW][OURS]
    times = cuda["tokens_per_second"] / train_cpu["throughput"][ROW][OURS]["tokens_per_second"]
    two = scale_out["ratios"].get("ray_2_workers_vs_1")
    efficiency = min(1.0, two / 2) if two else 1.0
    shared = "`ratios.ray_2_workers_vs_1` of scale_out.json is not measured yet: several count as independent."
    if two:
        shared = f"Two workers do {two:.2f} times what one does (scale_out.json, `ratios.ray_2_workers_vs_1`): each of "
        shared += f"several counts as {efficiency:.2f}."
    found = rates(demo, lists, times)
    where = f"`throughput.{ROW}.{OURS}`"
    encoding, rate = ITEMS * ITEM_TOKENS / (FORWARD * cuda["tokens_per_second"]) / 3600, cuda["tokens_per_second"]
    parts = [
        rate_table(found),
        f"× {times:.1f}: tokens/s in training, {where} of train_cuda.json by that of train_cpu.json. {shared}",
        night_table(found, price, efficiency),
        f"One epoch of training ({where} of train_cuda.json, rows/s), several cards counted as independent:",
        training_table(cuda["rows_per_second"], price["h200"]),
        f"Encoding {ITEMS:,} items of {ITEM_TOKENS} tokens, an estimate (a forward is a third of the work of training, "
        f"{rate:,.0f} tokens/s): {_hours(encoding)} of one `h200`, {_hours(encoding / UNITS[-1])} of {UNITS[-1]}, "
        f"${encoding * price['h200']:,.0f}.\n",
    ]
    return "\n\n".join(parts)


def rates(demo: Facts, lists: Facts, times: float) -> list[Rate]:
    """Of lists, the cheapest first. `times`: how many times as fast as the 2 cores the H200 is taken to be."""
    fast, fused = (demo["users_per_second"][name] for name in ("final_fast", "final"))
    beam = lists["rows"]["D"]["users_per_second"]
    estimate = f"estimate: {{}} users/s on 2 cores × {times:.1f}"
    return [
        Rate("`fast`, no LLM", "cpu2", fast, "demo_cpu.json, `users_per_second.final_fast`"),
        Rate("`fused`", "cpu2", fused, "demo_cpu.json, `users_per_second.final`"),
        Rate("`fused`", "h200", fused * times, estimate.format(f"{fused:.2f}")),
        Rate("`beam`", "h200", beam * times, f"{estimate.format(f'{beam:.2f}')} (recommend_cpu.json, `rows.D`)"),
    ]


def rate_table(found: list[Rate]) -> str:
    return markdown(
        ["lists", "on", "users/s of one", "from"],
        [[rate.what, f"`{rate.unit}`", f"{rate.users:,.1f}", rate.source] for rate in found],
    )


def night_table(found: list[Rate], price: dict[str, float], efficiency: float) -> str:
    """Hours on 1, 8 and 64 units, in bold what is done within a night; and what it costs, however many there are."""
    head = ["users", "lists", "on", *(f"{n} " for n in UNITS), "cost"]
    rows = []
    for users in USERS:
        for rate in found:
            hours = [users / rate.users / 3600 / n / (1 if n == 1 else efficiency) for n in UNITS]
            cost = users / rate.users / 3600 * price[rate.unit] / efficiency
            rows.append(
                [
                    f"{users:,}",
                    rate.what,
                    f"`{rate.unit}`",
                    *map(_hours, hours),
                    f"${cost:,.2f}" if cost < 100 else f"${cost:,.0f}",
                ]
            )
    return markdown(head, rows)


def training_table(rows_per_second: float, price: float) -> str:
    """Hours of one epoch over so many users' rows."""
    rows = []
    for users in (100_000, 1_000_000, 10_000_000):
        hours = users / rows_per_second / 3600
        rows.append([f"{users:,}", *(_hours(hours / n) for n in UNITS), f"${hours * price:,.0f}"])
    return markdown(["rows (users)", *(f"{n} `h200`" for n in UNITS), "cost"], rows)


def _hours(hours: float) -> str:
    text = f"{hours * 60:,.1f} min" if hours < 1 else f"{hours:,.1f} h"
    return f"**{text}**" if hours <= NIGHT else text
