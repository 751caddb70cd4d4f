"""An evaluation as a Markdown table, with its protocol in the caption."""

from collections.abc import Mapping, Sequence
from typing import Any

from calrec_lite.evaluate.protocol import SAME
from calrec_lite.measure.metrics import METRICS


def table(results: Mapping[str, Any]) -> str:
    """The contents of a metrics.json as a Markdown table, its protocol as the caption below."""
    speeds, users = results["users_per_second"], measured_on(results)
    uneven = len(set(users.values())) > 1
    head = ["system", *(["users"] if uneven else []), "R@1", "R@10", "N@10"]
    head += [f"MRR@{results['protocol']['mrr_cut']}", *([f"N@10, same {min(users.values()):,}"] if uneven else [])]
    head += ["users/s"]
    rows = [
        [
            name,
            *([f"{users[name]:,}"] if uneven else []),
            *(interval_cell(metrics[metric]) for metric in METRICS),
            *([interval_cell(results["slices"][name][SAME]["ndcg@10"])] if uneven else []),
            f"{speeds[name]:.{0 if speeds[name] >= 100 else 1}f}",
        ]
        for name, metrics in results["systems"].items()
    ]
    return f"{markdown(head, rows)}\n\n{caption(results)}"


def measured_on(results: Mapping[str, Any]) -> dict[str, int]:
    """How many users each system was measured on; older results do not say it: there all were measured on all."""
    return dict.fromkeys(results["systems"], results["protocol"]["users"]) | results.get("users", {})


def caption(results: Mapping[str, Any]) -> str:
    """One line that says how the results were measured."""
    protocol, domain = results["protocol"], results["domain"]
    seen = "seen items masked" if protocol["exclude_seen"] else "seen items may be recommended"
    if protocol["unreachable"]:
        seen += f" (the target of {protocol['unreachable_share']:.1%} of users is one: a miss for every system)"
    # Results written before these keys were there are leave-one-out with canonical items.
    rules = {"canonical": "same text, one item", "expected": "items of the same text in random order, expected credit"}
    duplicates = rules[protocol.get("duplicates", "canonical")]
    tied = protocol.get("tied_share")
    ties = "no times: events in the file's order"
    if tied is not None:
        ties = f"{tied:.1%} of targets tied in time (order drawn by the seed)"
    made_note = f", models' lists by {made_by(results)}" if results.get("recommend") else ""
    model_users = protocol.get("model_users")
    users = f"{protocol['users']:,} users"
    if model_users and model_users < protocol["users"]:
        users += f" (models: {model_users:,} of them)"
    return (
        f"{domain['name']} ({domain['fingerprint'][:12]}), {protocol['split']}, "
        f"{protocol.get('holdout', 'leave-one-out')}, full catalogue of {protocol['items']:,} items ({duplicates}), "
        f"{users}, {ties}, {seen}, MRR cut at {protocol['mrr_cut']}{made_note}; "
        f"[95% bootstrap interval over users], seed {protocol['seed']}."
    )


def made_by(results: Mapping[str, Any]) -> str:
    """How the models' lists of an evaluation were made, in a few words."""
    recommend = results.get("recommend")
    if not recommend:
        return "an unknown strategy"
    text = f"`{recommend['strategy']}`"
    if recommend["strategy"] == "rerank":
        text += f" (fusion {recommend['fusion']:g}, transitions {recommend['transitions']:g})"
    if dtype := results.get("dtype"):  # older results do not say it
        text += f" in {dtype}"
    return f"{text}, quantised as in training (too large for the GPU)" if results.get("quantised") else text


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as plain text: first column left, the others right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [head, *rows]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def weights_table(weights: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> str:
    """How much each reading counts in fused lists, with its interval."""
    rows = [[name, f"{weight:.3f}", "[{:.3f}, {:.3f}]".format(*intervals[name])] for name, weight in weights.items()]
    return markdown(["reading", "weight", "95% interval"], rows)


def interval_cell(interval: Mapping[str, float]) -> str:
    """A metric with its interval, as all tables have it."""
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def difference_cell(difference: Mapping[str, float]) -> str:
    """A paired difference with its interval and p-value, as all tables have it."""
    d = difference
    return f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] p={d['p']:.3g}"
