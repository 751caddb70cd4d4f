"""`calrec-lite report`: all that is known about a run on one HTML page that needs no other file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from calrec_lite import __version__
from calrec_lite.data.domain import Domain
from calrec_lite.data.report import describe
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import BASELINE_NAMES
from calrec_lite.evaluate.compare import compare
from calrec_lite.evaluate.settings import changed_settings
from calrec_lite.evaluate.store import read_metrics
from calrec_lite.evaluate.tables import caption, measured_on
from calrec_lite.files import atomic_path
from calrec_lite.measure.metrics import METRICS
from calrec_lite.page.examples import examples
from calrec_lite.page.plots import Bar, Curve, histogram, interval_chart, line_chart
from calrec_lite.recipe import resolved
from calrec_lite.run import Run
from calrec_lite.training.handover import handover_rise

USERS = 20
CURVES = {  # key of the log -> title of its chart
    "nats_per_item": "nats an item",
    "nig": "L_NIG",
    "tt": "L_TT",
    "ut": "L_UT",
    "loss": "objective",
    "tokens_per_second": "tokens a second",
    "memory_bytes": "peak memory, GB",
    "learning_rate": "learning rate",
}
EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 1000)  # of the histograms: lower ends


def write_report(run: Run, reasons: bool = True) -> Path:
    """Write `evaluation/report.html`: results, training, hand-overs, example users, data, recipe.

    Args:
        reasons: recommend to the example users once more, to say why each item is in their lists.

    Raises:
        InputError: the run has no evaluation, or one of other data than its recipe's; or its prepared domains are gone.
    """
    results = read_metrics(run.evaluation)
    names = dict.fromkeys([run.recipe.target, *(d for stage in run.recipe.stages for d in stage.domains)])
    domains = [Domain.open(run.folder / "domains" / name) for name in names]
    if results["domain"]["fingerprint"] != domains[0].fingerprint:
        raise InputError(f"{run.evaluation}: not of the data of `{domains[0].name}` as it is now; evaluate again")
    subject = "final" if "final" in results["systems"] else "base"
    users, note = examples(run, domains[0], subject, results, USERS, reasons)
    page = {
        "version": __version__,
        "recipe": run.recipe,
        "recipe_text": yaml.safe_dump(resolved(run.recipe), sort_keys=False, allow_unicode=True, width=10_000),
        "base": run.recipe.base.model.partition("#")[0],
        "results": results,
        "measured_on": measured_on(results),
        "caption": caption(results),
        "changes": "; ".join(changed_settings(run, results)),
        "subject": subject,
        "metrics": _metric_names(results),
        **_systems(run, results, subject),
        "slices": _slices(results, subject),
        "stages": _stages(run),
        "domains": [_domain(domain) for domain in domains],
        "examples": users,
        "examples_note": note,
    }
    written = run.evaluation / "report.html"
    with atomic_path(written) as temporary:
        temporary.write_text(_environment().get_template("report.html.j2").render(page), encoding="utf-8")
    return written


def _environment() -> Environment:
    """Every value is escaped: titles, users and recipes are other people's text."""
    loader = PackageLoader("calrec_lite", "page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _metric_names(results: Mapping[str, Any]) -> dict[str, str]:
    names = ("Recall@1", "Recall@10", "NDCG@10", f"MRR@{results['protocol']['mrr_cut']}")
    return dict(zip(METRICS, names, strict=True))


def _strongest(results: Mapping[str, Any]) -> str | None:
    """The baseline with the highest NDCG@10."""
    baselines = [name for name in results["systems"] if name in BASELINE_NAMES]
    return max(baselines, key=lambda name: results["systems"][name]["ndcg@10"]["value"], default=None)


def _systems(run: Run, results: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """Metrics, their chart, and how much the subject is above every other system, user by user."""
    kinds = {name: "other" if name in BASELINE_NAMES else "model" for name in results["systems"]} | {subject: "subject"}
    bars = [Bar(name, kinds[name], metrics) for name, metrics in results["systems"].items()]
    pairs = [(name, subject) for name in results["systems"] if name != subject]
    comparisons = compare(run.evaluation, run.evaluation, pairs)["comparisons"] if pairs else []
    return {
        "kinds": kinds,
        "systems_chart": interval_chart(bars, _metric_names(results)),
        "differences": {pair["a"]: pair["metrics"] for pair in comparisons},
        "strongest": _strongest(results),
    }


def _slices(results: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """Metrics by kind of user, drawn for the subject and the strongest baseline."""
    slices: Mapping[str, Mapping[str, Any]] = results["slices"]
    strongest, names = _strongest(results), _metric_names(results)
    bars = []
    for name, of_subject in slices[subject].items():
        bars.append(Bar(name, "subject", of_subject))
        if strongest and name in slices[strongest]:
            bars.append(Bar("", "other", slices[strongest][name]))
    return {
        "chart": interval_chart(bars, {key: names[key] for key in ("recall@10", "ndcg@10")}),
        "rows": [
            (name, facts["users"], {system: slices[system][name]["ndcg@10"]["value"] for system in slices})
            for name, facts in slices[subject].items()
        ],
    }


def _stages(run: Run) -> list[dict[str, Any]]:
    """Each finished stage: what it measured and its curves, on the same scale as the other stages'."""
    facts_by_stage = run.stage_metrics()
    logs = {name: [e for e in run.log_entries() if e["stage"] == name] for name in facts_by_stage}
    curves = {name: {key: _curves(key, logs[name], facts_by_stage[name]) for key in CURVES} for name in facts_by_stage}
    scales = {}
    for key in CURVES:
        values = [y for by_key in curves.values() for curve in by_key[key] for y in curve.y if np.isfinite(y)]
        lowest = 0.0 if key in ("tokens_per_second", "memory_bytes", "learning_rate") else min(values, default=0.0)
        scales[key] = (lowest, max(values, default=1.0))
    tolerance = run.recipe.optim.handover_tolerance
    stages = []
    for name, facts in facts_by_stage.items():
        lost = round(handover_rise(facts), 6) + 0.0
        index = [stage.folder.name for stage in run.stages].index(name)
        stages.append(
            {
                "name": name,
                "domains": run.recipe.stages[index].domains,
                "facts": facts,
                "lost": lost,
                "loud": not lost <= tolerance,  # NaN is loud
                "rates": {key: _median(logs[name], key) for key in ("tokens_per_second", "targets_per_second")},
                "charts": [
                    line_chart(title, curves[name][key], facts["steps"], scales[key]) for key, title in CURVES.items()
                ],
            }
        )
    return stages


def _curves(key: str, log: list[dict[str, Any]], facts: Mapping[str, Any]) -> list[Curve]:
    logged = [e for e in log if "loss" in e and key in e]
    scale = 1e-9 if key == "memory_bytes" else 1.0
    curves = [Curve([e["step"] for e in logged], [e[key] * scale for e in logged])]
    if key == "nats_per_item":
        validated = [(e["step"], e["eval_nats_per_item"]) for e in log if "eval_nats_per_item" in e]
        points = dict([(0, facts["valid_nats_before"]), *validated, (facts["steps"], facts["valid_nats_after"])])
        curves.append(Curve(list(points), list(points.values()), marks=True))
    return curves


def _median(log: list[dict[str, Any]], key: str) -> float | None:
    values = [entry[key] for entry in log if key in entry]
    return float(np.median(values)) if values else None


def _domain(domain: Domain) -> dict[str, Any]:
    lengths = np.diff(domain.sequences.offsets)
    return {
        "name": domain.name,
        "described": describe(domain),
        "charts": [
            histogram("users by number of events", _binned(lengths)),
            histogram("items by number of events trained on", _binned(domain.train_counts(), zero=True)),
        ],
    }


def _binned(values: np.ndarray, zero: bool = False) -> dict[str, int]:
    """How many values fall between two of EDGES."""
    edges = [0, *EDGES] if zero else list(EDGES)
    counts = np.histogram(values, [*edges, np.inf])[0]
    names = [
        f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        for low, high in zip(edges, [*edges[1:], None])
    ]
    non_empty = np.flatnonzero(counts)
    return {names[i]: int(counts[i]) for i in range(non_empty.min(), non_empty.max() + 1)} if len(non_empty) else {}
