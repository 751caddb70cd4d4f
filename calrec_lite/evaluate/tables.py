"""An evaluation as a Markdown table, with its protocol in the caption."""

from collections.abc import Mapping, Sequence
from typing import Any

from calrec_lite.evaluate.protocol import SAME
from calrec_lite.measure.metrics import METRICS, Difference, Interval
from calrec_lite.table import markdown


def table(results: Mapping[str, Any]) -> str:
    """The contents of a metrics.json as a Markdown table, its protocol as the caption below."""
    return f"{markdown(*table_rows(results))}\n\n{caption(results)}"


def table_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same as head and rows."""
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
    return head, rows


def measured_on(results: Mapping[str, Any]) -> dict[str, int]:
    """How many users each system was measured on; older results do not say it: there all were measured on all."""
    return dict.fromkeys(results["systems"], results["protocol"]["users"]) | results.get("users", {})


def lead(results: Mapping[str, Any]) -> str:
    """How far the best system is ahead of popularity, in a sentence: without a lead there is little to learn."""
    ndcg = {name: metrics["ndcg@10"]["value"] for name, metrics in results["systems"].items()}
    best = max(ndcg, key=ndcg.__getitem__)
    popular = ndcg.get("popularity", 0.0)
    if best == "popularity" or not popular:
        return f"N@10: {best} is best with {ndcg[best]:.4f}"
    intervals = (results["systems"][name]["ndcg@10"] for name in (best, "popularity"))
    apart = next(intervals)["low"] > next(intervals)["high"]
    what = "histories tell what comes next" if apart else "not told apart on so many users"
    return f"N@10: {best} is best with {ndcg[best]:.4f}, {ndcg[best] / popular:.2f} times popularity: {what}"


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


def weights_table(weights: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> str:
    """How much each reading counts in fused lists, with its interval."""
    rows = [[name, f"{weight:.3f}", "[{:.3f}, {:.3f}]".format(*intervals[name])] for name, weight in weights.items()]
    return markdown(["reading", "weight", "95% interval"], rows)


def interval_cell(interval: Interval | Mapping[str, float]) -> str:
    """A metric with its interval, as all tables have it."""
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def difference_cell(difference: Difference | Mapping[str, float]) -> str:
    """A paired difference with its interval and p-value, as all tables have it."""
    d = difference
    return f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] p={d['p']:.3g}"
