"""The tables of the recommending benchmark, from its JSON."""

from typing import Any

from calrec_lite.evaluate.tables import interval_cell, markdown

ROWS = {
    "A": "transformers generate, 32 samples, BM25",
    "B": "transformers generate, 20 beams over a trie",
    "C": "sample, exact matches first",
    "C paper": "sample, the paper's order (of the texts of C)",
    "D": "beam",
    "D strict": "beam, pruned as transformers does",
    "E": "dense",
    "F": "rerank, fused",
}


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    head = ["row", "what", "users/s", "peak GB", "valid", "distinct", "R@1", "R@10", "N@10"]
    rows = [
        [
            name,
            facts["what"],
            f"{facts['users_per_second']:.3g}",
            f"{facts['peak_memory_bytes'] / 1e9:.1f}",
            f"{facts['valid_share']:.0%}",
            f"{facts['distinct_share']:.0%}",
            *(interval_cell(facts[m]) for m in ("recall@1", "recall@10", "ndcg@10")),
        ]
        for name, facts in results["rows"].items()
    ]
    return markdown(head, rows)


def pages(results: dict[str, Any]) -> str:
    """All parts that were measured, as Markdown."""
    made = {"rows": rows_page, "equal": equal_page, "quality": quality_page, "scale": scale_page}
    return "\n\n".join(page(results) for part, page in made.items() if part in results)


def rows_page(results: dict[str, Any]) -> str:
    ratios = "\n".join(f"- `{key}`: {value:.4g}" for key, value in results["ratios"].items())
    return f"{table(results)}\n\n{results['setting']}; [95% bootstrap interval over users].\n\n{ratios}"


def equal_page(results: dict[str, Any]) -> str:
    equal = results["equal"]
    return (
        f"In fp32, {equal['users']} users: {equal['lists_of_20_identical']:.1%} of the lists of all 20 beams of "
        "`beam_search(strict=True)` are transformers' item by item, "
        f"{equal['lists_of_20_identical_up_to_ties']:.1%} up to ties of {equal['tie_nats']:g} nats, and "
        f"{equal['lists_of_10_identical']:.1%} of the lists of 10 unseen items, at "
        f"{equal['strict_vs_transformers_users']:.3g}x its users/s. Of `beam` as it is, "
        f"{equal['beam_lists_of_10_identical']:.1%} of the lists of 10 are the same, "
        f"{equal['beam_lists_of_10_shared_items']:.1%} of their items."
    )


def quality_page(results: dict[str, Any]) -> str:
    quality = results["quality"]
    fusion = quality["fusion_on_validation"][0]["fusion"]
    rows = [
        [
            f"{name} {ROWS[name]}",
            f"{facts['users_per_second']:.3g}",
            *(interval_cell(facts[m]) for m in ("recall@1", "recall@10", "ndcg@10")),
            difference(quality["minus_D"].get(name, {}).get("ndcg@10")),
        ]
        for name, facts in quality["rows"].items()
    ]
    head = ["row", "users/s", "R@1", "R@10", "N@10", "N@10 minus D"]
    return f"On {quality['users']:,} test users (fusion {fusion:g}, by validation):\n\n{markdown(head, rows)}"


def scale_page(results: dict[str, Any]) -> str:
    grown = results["scale"]
    tables = [
        markdown(
            [label, *next(iter(grown[key].values()))],
            [[size, *(f"{v:.3g}" for v in speeds.values())] for size, speeds in grown[key].items()],
        )
        for key, label in (("catalogue", "items"), ("history", "history"), ("beams", "beams"))
    ]
    head = f"Users/s as the catalogue, the history and the beams grow ({grown['users']} users; {grown['note']}):"
    return "\n\n".join([head, *tables])


def difference(facts: dict[str, float] | None) -> str:
    return f"{facts['difference']:+.4f} [{facts['low']:+.4f}, {facts['high']:+.4f}]" if facts else ""
