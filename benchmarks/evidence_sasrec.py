"""The evidence's SASRec measured anew, into a results file whose cells' weights and lists are gone.

    python benchmarks/evidence_sasrec.py --target scientific|office [--data ../shared/data]

For when the baseline has changed since: same domain, users and protocol, by today's code. What the final model's lists
have more or less than it is then not paired by user: the interval is of two independent means, which is wider than the
paired one where both hit the same users. The SASRec that was measured with the cells stays beside it, paired.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from amazon import TARGETS
from evidence import FINAL, LISTS, ROOT, ratios, recipe_values
from sasrec import about, target

from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import build_baseline
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.files import write_json
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe.file import check_recipe

NAME, EARLIER = "sasrec", "earlier sasrec"
Z = 1.959964  # standard errors on either side of a mean in a 95% interval


def unpaired(final: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """By metric: final minus other as of independent users, with a normal interval and p-value."""
    found = {}
    for metric, own in final.items():
        theirs = other[metric]
        difference = own["value"] - theirs["value"]
        error = math.hypot(*((m["high"] - m["low"]) / (2 * Z) for m in (own, theirs)))
        p = math.erfc(abs(difference) / error / math.sqrt(2))
        low, high = difference - Z * error, difference + Z * error
        found[metric] = {"difference": difference, "low": low, "high": high, "p": p, "paired": False}
    return found


def with_sasrec(facts: dict[str, Any], metrics: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """The evidence's results with this SASRec in the earlier one's place, and all that follows from it.

    Args:
        measured: by what command, when, with which settings.
    """
    rows = {(row["variant"], *row["stages"]): row["metrics"] for row in facts["rows"]}
    reranked = {(row["variant"], *row["stages"]): row["rerank"]["metrics"] for row in facts["rerank_by_cell"]}
    final = {"final": rows[FINAL]} | {name: facts["rerank"][name]["metrics"] for name in ("rerank", "with_transitions")}
    baselines, beside = dict(facts["baselines"]), facts["final_minus_baselines"]
    if EARLIER not in baselines:
        baselines[EARLIER] = baselines[NAME]
        beside = {lists: {**own, EARLIER: own[NAME]} for lists, own in beside.items()}
    baselines[NAME] = {"metrics": metrics, "minus_full": None, "measured": measured}
    beside = {lists: {**beside[lists], NAME: unpaired(final[system], metrics)} for lists, system in LISTS.items()}
    by_name = {name: row["metrics"] for name, row in baselines.items()}
    values, by = ratios(rows, reranked, final["with_transitions"], by_name)
    changed = {"baselines": baselines, "final_minus_baselines": beside, "ratios": values, "ratio_lists": by}
    return facts | changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), required=True)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args()
    out = ROOT / "benchmarks" / "results" / f"evidence_{options.target}.json"
    facts = json.loads(out.read_text(encoding="utf-8"))
    budget, users = {"steps": facts["budget"]["steps"]}, facts["protocol"]["users"]
    recipe = check_recipe(recipe_values(options.data, options.target, budget, users))
    domain, protocol = target(options.target, options.data), Protocol.of(recipe)
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    if domain.fingerprint != facts["domain"]["fingerprint"] or protocol.record(cases) != facts["protocol"]:
        raise InputError(f"{out}: of other data or another protocol than today's: run benchmarks/evidence.py instead")
    metrics = evaluate_system(build_baseline(NAME, domain, recipe), cases, protocol).metrics
    measured = about(f"python benchmarks/evidence_sasrec.py --target {options.target}")
    measured["settings"] = recipe.evaluate.sasrec.model_dump(mode="json")
    write_json(out, with_sasrec(facts, metrics, measured))


if __name__ == "__main__":
    main()
