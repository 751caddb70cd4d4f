"""Write the tables of README.md and docs/ from benchmarks/results/*.json.

    python benchmarks/readme.py          fill them in
    python benchmarks/readme.py --check  exit 1 if one differs from its JSON

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from calrec_lite.evaluate.tables import caption, interval_cell, markdown, table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
METRICS = ("recall@1", "recall@10", "ndcg@10")
QUALITY = ("scientific", "office", "beauty", "games", "ml100k", "journey", "journey_masked")
SYSTEMS = {
    "popularity": "popularity",
    "personal_popularity": "what the user bought most often",
    "bm25_last": "BM25 on the last title",
    "minilm": "MiniLM, mean of the latest items",
    "transitions": "transition counts",
    "sasrec": "SASRec",
    "counts_fast": "transitions and popularity, weighed",
    "minilm_cosine": "MiniLM, whitened vectors by recency",
    "minilm_text": "the same and words (`text`)",
    "minilm_vectors": "MiniLM and user tower, no counts (`vectors`)",
    "minilm_fast": "all readings over MiniLM (`fast`)",
    "untouched_text": "untouched LLM, `text`",
    "untouched_vectors": "untouched LLM, `vectors`",
    "untouched_fast": "untouched LLM, `fast`",
    "finetuned_text": "finetuned LLM, `text`",
    "finetuned_vectors": "finetuned LLM, `vectors`",
    "finetuned_fast": "finetuned LLM, `fast`",
}
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def machine(facts: dict[str, Any]) -> str:
    versions = facts["versions"]
    names = ["torch", "transformers", "peft", "bitsandbytes", *(["cornac"] if "sasrec" in facts["command"] else [])]
    packages = ", ".join(f"{name} {versions[name]}" for name in names)
    hardware = facts["hardware"]
    where = hardware["gpu"] or f"{hardware['cpus']} CPU cores ({hardware['machine']})"
    return f"`{facts['command']}`, {facts['date'][:10]}, {where}, {packages}"


def demo() -> str:
    facts = results("demo_cpu")
    kind = facts["hardware"]["cpu_capability"] + (" at most, a newer one held to it" if facts["imitated"] else "")
    spent = f"{facts['minutes']:.1f} minutes in {facts['dtype']}, {facts['peak_memory_bytes'] / 1e9:.1f} GB at most"
    return f"{table(facts)}\n\n{machine(facts)}, instructions: {kind}: {spent}.\n"


def demo_output() -> str:
    return "```text\n" + "\n".join(results("demo_cpu")["output_end"]) + "\n```\n"


def handover() -> str:
    from handover import table as rows

    facts = results("handover_cpu")
    ratios = "\n".join(f"- `{key}`: {value:.4g}" for key, value in facts["ratios"].items())
    return f"{rows(facts)}\n\n{facts['setting']}. {machine(facts)}.\n\n{ratios}\n"


def recommend() -> str:
    from recommend_tables import pages

    facts = results("recommend_cpu")
    return f"{pages(facts)}\n\n{machine(facts)}.\n"


def training(device: str = "cpu") -> str:
    from train_tables import table as rows

    facts = results(f"train_{device}")
    return f"{rows(facts)}\n\n{facts['setting']}. {machine(facts)}, trl {facts['versions']['trl']}.\n"


def training_gpu() -> str:
    return training("cuda")


def quality_results(kind: str = "quality") -> dict[str, dict[str, Any]]:
    """Domain -> its file of `benchmarks/KIND.py`, in the order of QUALITY; those measured so far."""
    folder = ROOT / "benchmarks" / "results"
    return {name: results(f"{kind}_{name}") for name in QUALITY if (folder / f"{kind}_{name}.json").is_file()}


def quality() -> str:
    """NDCG@10 and Recall@1 of every list-maker on every domain."""
    measured = quality_results()
    rows = [
        [label, *(_two(facts["systems"].get(name)) for facts in measured.values())]
        for name, label in SYSTEMS.items()
        if any(name in facts["systems"] for facts in measured.values())
    ]
    head = ["N@10 / R@1, test", *(f"{n} ({facts['protocol']['users']:,} users)" for n, facts in measured.items())]
    widest = max(
        (s[key]["high"] - s[key]["low"]) / 2
        for f in measured.values()
        for s in f["systems"].values()
        for key in ("ndcg@10",)
    )
    notes = (
        "All test users, the full catalogue, seen items masked but in `journey`; rows with a user tower are means over "
        f"seeds ({_seeds(measured)}); 95% intervals of N@10 are within {widest:.3f}."
    )
    return f"{markdown(head, rows)}\n\n{notes} {machine(next(iter(measured.values())))}.\n"


def quality_ratios() -> str:
    """What is better than what, by how much, and how sure that is."""
    measured = quality_results()
    names = dict.fromkeys(name for facts in measured.values() for name in facts["ratios"])
    rows = [
        [
            f"`{name}`",
            *(f"{facts['ratios'][name]:.3g}" if name in facts["ratios"] else "" for facts in measured.values()),
        ]
        for name in names
    ]
    return f"{markdown(['ratio', *measured], rows)}\n"


def quality_control() -> str:
    """What vectors of items are worth in each list: of MiniLM and of the untouched LLM, beside random ones."""
    measured = quality_results("quality_control")
    sources = {"minilm": "MiniLM", "untouched": "untouched LLM"}
    rows = [
        [name, f"`{reading}`", f"{facts[reading]['random']['ndcg@10']['value']:.4f}"]
        + [_more(facts[reading], source) for source in sources]
        for name, facts in measured.items()
        for reading in ("fast", "vectors")
    ]
    head = ["test", "list", "random", *(f"{label}: less random [95%], ratio" for label in sources.values())]
    first = machine(next(iter(measured.values())))
    return f"{markdown(head, rows)}\n\nN@10 of all test users; seeds: {_seeds(measured)}. {first}.\n"


def _seeds(measured: dict[str, dict[str, Any]]) -> str:
    return "; ".join(f"{name}: {', '.join(map(str, facts['seeds']))}" for name, facts in measured.items())


def _more(facts: dict[str, Any], source: str) -> str:
    more = facts[f"{source} - random"]["ndcg@10"]
    interval = f"[{more['low']:+.4f}, {more['high']:+.4f}]"
    return f"{more['difference']:+.4f} {interval}, {facts[f'{source}_vs_random']:.3f}"


def _two(metrics: dict[str, Any] | None) -> str:
    return f"{metrics['ndcg@10']['value']:.4f} / {metrics['recall@1']['value']:.4f}" if metrics else ""


def evidence(target: str = "scientific") -> str:
    from evidence import rerank_table

    from calrec_lite.ablation.table import ablation_table

    facts = results(f"evidence_{target}")
    by = facts["ratio_lists"]
    ratios = "\n".join(f"- `{key}` ({by[key]}): {value:.3g}" for key, value in facts["ratios"].items())
    last = [(cell, list(stages.values())[-1]) for cell, stages in facts["validation_nats"].items() if stages]
    nats = ", ".join(f"`{cell}` {value:.3f}" for cell, value in last)
    parts = [ablation_table(facts), rerank_table(facts), f"Nats an item on validation users: {nats}.", machines(facts)]
    return "\n\n".join([*parts, ratios]) + "\n"


def evidence_systems() -> str:
    """Every system on the same test users, the final model by each of its kinds of lists."""
    from evidence import FINAL

    facts = results("evidence_scientific")
    rows = {(row["variant"], *row["stages"]): row["metrics"] for row in facts["rows"]}
    own = facts["rerank"]
    systems = {name: row["metrics"] for name, row in facts["baselines"].items()} | {
        "untouched base, beam": rows[FINAL[:1]],
        "final model, beam": rows[FINAL],
        "final model, rerank": own["rerank"]["metrics"],
        "final model, rerank with transitions": own["with_transitions"]["metrics"],
        "minilm with transitions, in its place": facts["minilm_with_transitions"]["metrics"],
    }
    lines = [[name, *(interval_cell(metrics[key]) for key in METRICS)] for name, metrics in systems.items()]
    table_ = markdown(["amazon18_scientific, test", "R@1", "R@10", "N@10"], lines)
    return f"{table_}\n\n{caption({**facts, 'recommend': None})}\n\n{machines(facts)}.\n"  # each row says it


def machines(facts: dict[str, Any]) -> str:
    """What the evidence was made by; baselines measured anew since by name."""
    later = [f"{name}: {machine(row['measured'])}" for name, row in facts["baselines"].items() if "measured" in row]
    return "; ".join([machine(facts), *later])


def evidence_office() -> str:
    return evidence("office")


def evidence_trials() -> str:
    from evidence_trials import table as rows

    groups = results("evidence_trials").items()
    parts = [f"{name}:\n\n{rows(facts)}\n\n{machine(facts)}; threads: {facts['threads']}." for name, facts in groups]
    return "\n\n".join(parts) + "\n"


def sasrec() -> str:
    facts = results("sasrec_beauty")
    trainings = "; ".join(
        f"{order} order: epoch {own['best_epoch']} of {own['epochs']}, validation N@10 {own['valid_ndcg']:.4f}, "
        f"{own['minutes']} minutes to train on {own['device']}"
        for order, own in (("drawn", facts["trained"]), ("file's", facts["file_order"]["trained"]))
    )
    lines = [
        [name, *(interval_cell(metrics[key]) for key in METRICS)]
        for name, metrics in facts["file_order"]["systems"].items()
    ]
    as_filed = markdown(["events of one time as the file has them", "R@1", "R@10", "N@10"], lines)
    return f"{table(facts)}\n\n{as_filed}\n\n{machine(facts)}. SASRec, {trainings}.\n"


def sasrec_targets() -> str:
    """The grid on the evidence's targets; best epoch of those made."""
    found = [results(f"sasrec_{name}") for name in ("scientific", "office")]
    keys = ("hidden", "batch_size", "dropout")
    lines = [
        [facts["domain"]["name"], *(str(one["options"][key]) for key in keys)]
        + [f"{one['trained']['best_epoch']} of {one['trained']['epochs']}", str(one["trained"]["minutes"])]
        + [interval_cell(one["validation"]["ndcg@10"])]
        + [interval_cell(one["test"][key]) for key in ("ndcg@10", "recall@1")]
        for facts in found
        for one in facts["tried"]
    ]
    head = ["domain", "hidden", "rows a step", "dropout", "best epoch", "minutes"]
    head += ["validation N@10", "test N@10", "test R@1"]
    return f"{markdown(head, lines)}\n\n{'; '.join(machine(facts) for facts in found)}.\n"


def scale() -> str:
    facts = results("scale_cpu")
    size = f"{facts['users']:,} users x {facts['items']:,} items"
    rows = [
        [f"ranks of targets from the scores of a dense model, {size}", facts["scores"]],
        [f"`transitions`, fitted, listed and measured, {size}", facts["lists"]],
    ]
    rows += [[f"`prepare` of {row['events']:,} events", row] for row in facts["prepare"]["rows"]]
    items = f"one list by beam over {facts['catalogue']['items']:,} items"
    rows += [[f"{items}, the {when} time", facts["catalogue"][when]] for when in ("first", "second")]
    cells = [[what, f"{row['seconds'] / 60:.1f}", f"{row['peak_memory_bytes'] / 1e9:.2f}"] for what, row in rows]
    made = "; ".join(machine(part) for part in (facts, facts["prepare"], facts["catalogue"]))
    return f"{markdown(['', 'minutes', 'peak GB'], cells)}\n\n{made}.\n"


def nights() -> str:
    """docs/scale.md: the rates, and what nights cost at them."""
    from scale_tables import tables

    names = ("demo_cpu", "recommend_cpu", "train_cpu", "train_cuda", "scale_out")
    return tables((ROOT / "docs" / "scale.md").read_text(encoding="utf-8"), *map(results, names))


def many() -> str:
    """docs/scale.md: a file of many users through Ray."""
    facts = results("scale_out")
    part, ratios = facts["parts"]["many"], facts["ratios"]
    first, last = part["users_per_second_of_first_and_last_quarter"]
    read, written = (size / 1e9 for size in part["bytes_of_users_and_lists"])
    hardware = part["hardware"]
    return (
        f"{part['users']:,} users, a file of {read:.2g} GB, in {part['parts']} parts by {part['workers']} workers on "
        f"{hardware['cpus']} CPU cores ({hardware['cpu_capability']}): {part['seconds'] / 60:.0f} minutes, the command "
        f"killed with all its processes after {part['parts_before_the_kill']} parts and given again; "
        f"{part['of_these_made_again']} of these were made again, {ratios['many_rows_lost']} users had no list at the "
        f"end and {ratios['many_rows_twice']} two. All processes together held "
        f"{part['most_bytes_of_all_processes'] / 1e9:.2g} GB at most, lists take {written:.2g} GB. Users a second of "
        f"the first and of the last quarter after the kill: {first:,.0f} and {last:,.0f}.\n"
    )


def serve() -> str:
    facts = results("serve_cpu")
    head = ["strategy", "clients", "requests/s", "p50 ms", "p99 ms", "CPU ms a request"]
    keys = ("clients", "requests_per_second", "p50_ms", "p99_ms", "cpu_ms_per_request")
    rows = [[f"`{row['strategy']}`", *(f"{row[key]:,.4g}" for key in keys)] for row in facts["rows"]]
    grown = facts["memory"]["growth_bytes"] / 1e6
    lost = sum(row["requests"] - row["statuses"]["200"] for row in facts["rows"])
    notes = (
        f"{facts['items']:,} items, lists of {facts['k']}; `fused` puts {facts['rerank']} items in order by the LLM. "
        f"{lost} requests were lost. Over {facts['memory']['requests']:,} requests by `{facts['memory']['strategy']}` "
        f"from 8 clients memory grew by {grown:.1f} MB, of {facts['memory']['bytes'][-1] / 1e9:.2f} GB."
    )
    return f"{markdown(head, rows)}\n\n{notes} {machine(facts)}.\n"


def filled(text: str) -> str:
    return BLOCK.sub(lambda m: f"{m[1]}{globals()[m[2]]()}{m[3]}", text)


def main() -> None:
    stale = [page for page in PAGES if filled(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        sys.exit(f"not what the results say: {', '.join(p.name for p in stale)}" if stale else 0)
    for page in stale:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
