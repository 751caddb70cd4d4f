"""How lists are made, how fast, and how good they are: transformers' `generate` against the four strategies.

    python benchmarks/recommend.py [--only rows|equal|quality|scale] [--out benchmarks/results/recommend_cpu.json]

SmolLM2-135M trained on amazon18_scientific (one stage, --steps), bf16. `rows`: blocks of users, every row on each block
in turn, medians over blocks. `equal`: in fp32, the lists of `beam` in transformers' order of pruning against
transformers' own. `quality`: our strategies on more users. `scale`: users/s against catalogue size, history length and
beams. Needs the shared data; a part measured before is kept in --out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recommend_rivals import SampleAndGround, TrieBeams
from recommend_scale import scale

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.fusion import tune_fusion
from calrec_lite.evaluate.metrics import paired_bootstrap, ranks_from_lists, summarise
from calrec_lite.evaluate.protocol import Cases, build_cases
from calrec_lite.evaluate.results import hardware, markdown, versions
from calrec_lite.files import write_json
from calrec_lite.model.base import load_model
from calrec_lite.model.towers import Towers
from calrec_lite.recipe_file import check_recipe, load_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.beam import beam_search
from calrec_lite.recommend.paths import Paths
from calrec_lite.recommend.tree import PromptTree
from calrec_lite.train.run import Run
from calrec_lite.train.stage import train_run

ROOT = Path(__file__).parents[1]
BLOCK = 20  # users of one timing
K = 10
TIE = 1e-3  # nats: scores of transformers and ours differ by so much in fp32
ROWS = {
    "A": "transformers generate, 32 samples, BM25",
    "B": "transformers generate, 20 beams over a trie",
    "C": "sample, exact matches first",
    "C paper": "sample, the paper's order",
    "D": "beam",
    "D strict": "beam, pruned as transformers does",
    "E": "dense",
    "F": "rerank, fused",
}
Ranker = Callable[[list[np.ndarray]], Any]


def recipe_values(data: Path, steps: int) -> dict[str, Any]:
    """One stage on the target; L_UT weighs more than in the paper, since `dense` and `rerank` live on it (METHOD 6)."""
    return {
        "name": "recommend",
        "base": {"model": load_recipe("demo").base.model, "load_in_4bit": False},
        "domains": {
            "scientific": {
                "interactions": str(data / "amazon18_scientific" / "seqs.jsonl.gz"),
                "items": str(data / "amazon18_scientific" / "items.jsonl.gz"),
                "columns": {"user": "user", "item": "items"},
                "fields": {"Title": "title"},
            }
        },
        "text": {
            "first": "Bought in this order:",
            "next": "Next:",
            "field": "{value}",
            "max_items": 10,
            "max_item_tokens": 48,
        },
        "stages": [{"name": "target", "domains": ["scientific"], "max_steps": steps}],
        "loss": {"alpha": 0.1, "beta": 0.2, "tau": 0.1},
        "optim": {"batch_size": 16, "micro_batch_size": 8, "learning_rate": 6e-4, "save_every": 25},
    }


class Bench:
    """The trained model, its users, and a ranker for each row."""

    def __init__(self, run: Run, users: int, dtype: str) -> None:
        self.run = run
        domain = run.domain("scientific")
        self.cases = build_cases(domain, "test", users, 0)
        self.validation = build_cases(domain, "validation", 300, 0)
        base = run.recipe.base.model_copy(update={"dtype": dtype})
        self.model = load_model(run.final(), base, quantised=False)
        self.model.eval()
        self.towers, self.encoder = Towers(self.model), run.encoder
        self.catalogue, self.ids = run.catalogue("scientific"), domain.catalogue.ids
        self.paths = Paths.of(self.catalogue, "catalogue")
        self.trie_beams = TrieBeams(self.model, self.encoder, self.catalogue, 20)

    def recommender(self, **options: Any) -> Recommender:
        chosen = self.run.recipe.recommend.model_copy(update=options)
        return Recommender(self.towers, self.encoder, self.catalogue, self.ids, chosen)

    def rankers(self, fusion: float) -> dict[str, Ranker]:
        def ours(**options: Any) -> Ranker:
            recommender = self.recommender(**options)
            return lambda histories: recommender.rank(histories, K, exclude_seen=True)

        sampled = SampleAndGround(self.model, self.encoder, self.catalogue, 32)
        return {
            "A": lambda histories: sampled.rank(histories, K),
            "B": lambda histories: self.trie_beams.rank(histories, K),
            "C": ours(strategy="sample"),
            "C paper": ours(strategy="sample", order="paper"),
            "D": ours(strategy="beam"),
            "D strict": lambda histories: [
                [i for i in own if i not in set(h.tolist())][:K]
                for own, h in zip((r.items.tolist() for r in self.strict(histories)), histories)
            ],
            "E": ours(strategy="dense"),
            "F": ours(strategy="rerank", fusion=fusion),
        }

    def strict(self, histories: list[np.ndarray]) -> list[Any]:
        """All 20 items of each user, seen ones too, as transformers would find them."""
        prompts = [self.encoder.prompt([self.catalogue.tokens[i] for i in h]) for h in histories]
        order = sorted(range(len(prompts)), key=lambda u: -len(prompts[u]))
        found: dict[int, Any] = {}
        for at in range(0, len(order), 10):
            users = order[at : at + 10]
            with torch.no_grad():
                tree = PromptTree(self.towers, [prompts[u] for u in users], self.encoder.pad)
            everything = np.ones((len(users), len(self.catalogue)), np.bool_)
            made = beam_search(tree, self.catalogue.trie, self.paths, 20, 20, everything, strict=True)
            found |= zip(users, made)
        return [found[u] for u in range(len(prompts))]


def memory(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").partition(f"{key}:")[2].split()[0]) * 1024


def timed(rank: Ranker, histories: list[np.ndarray]) -> tuple[np.ndarray, float, int]:
    """Lists (U, K), seconds, and the most memory held meanwhile."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    start = time.perf_counter()
    made = rank(histories)
    seconds = time.perf_counter() - start
    lists = np.full((len(histories), K), -1)
    for row, own in zip(lists, made):
        row[: len(own)] = own
    return lists, seconds, memory("VmHWM")


def measure_rows(bench: Bench, fusion: float, keep: Path) -> dict[str, Any]:
    """Every row on every block of users, in turn; a block that was measured before is read from `keep`."""
    rankers, cases = bench.rankers(fusion), bench.cases
    for rank in rankers.values():
        rank(cases.histories[:2])  # kernels, tries, item vectors
    blocks = []
    for at in range(0, len(cases.users), BLOCK):
        file = keep / f"rows-{at}.json"
        if not file.is_file():
            made = {name: timed(rank, cases.histories[at : at + BLOCK]) for name, rank in rankers.items()}
            write_json(file, {n: {"lists": x.tolist(), "seconds": s, "memory": m} for n, (x, s, m) in made.items()})
            print(at, {n: round(BLOCK / s, 3) for n, (_, s, _) in made.items()}, flush=True)
        blocks.append(json.loads(file.read_text(encoding="utf-8")))
    return {name: row_facts(name, blocks, cases) for name in rankers}


def row_facts(name: str, blocks: list[dict[str, Any]], cases: Cases) -> dict[str, Any]:
    lists = np.array([own for block in blocks for own in block[name]["lists"]])
    seconds = [block[name]["seconds"] / len(block[name]["lists"]) for block in blocks]
    valid = lists >= 0
    distinct = [len({i for i in own.tolist() if i >= 0}) / K for own in lists]
    return {
        "what": ROWS[name],
        "users_per_second": 1 / statistics.median(seconds),
        "peak_memory_bytes": max(block[name]["memory"] for block in blocks),
        "valid_share": float(valid.mean()),
        "distinct_share": float(np.mean(distinct)),
        **summarise(ranks_from_lists(lists, cases.targets), 2000, 0),
    }


def measure_equal(bench: Bench, users: int) -> dict[str, Any]:
    """In fp32: how many lists of 20 are the same as transformers', item by item, and up to ties."""
    histories = bench.cases.histories[:users]
    bench.strict(histories[:2])
    bench.trie_beams.scored(histories[0])
    start = time.perf_counter()
    ours = bench.strict(histories)
    middle = time.perf_counter()
    theirs = [bench.trie_beams.scored(history) for history in histories]
    end = time.perf_counter()
    return {
        "users": users,
        "identical_lists": float(np.mean([a.items.tolist() == b[0] for a, b in zip(ours, theirs)])),
        "identical_up_to_ties": float(np.mean([same_up_to_ties(a, *b) for a, b in zip(ours, theirs)])),
        "tie_nats": TIE,
        "largest_score_difference": max(float(np.abs(a.scores - np.array(b[1])).max()) for a, b in zip(ours, theirs)),
        "strict_vs_transformers_users": (end - middle) / (middle - start),
    }


def same_up_to_ties(ours: Any, items: list[int], scores: list[float]) -> bool:
    """The same scores place by place, and the same items but for those within a tie of each other or of the last."""
    if not np.allclose(ours.scores, scores, atol=TIE):
        return False
    other = dict(zip(items, scores))
    edge = scores[-1] + TIE
    return all(
        a == b or (abs(other[a] - s) < TIE if a in other else s < edge)
        for a, b, s in zip(ours.items.tolist(), items, ours.scores.tolist())
    )


def measure_quality(bench: Bench, fusion: float) -> dict[str, Any]:
    """Our strategies on all of the bench's users, with paired differences from beam search."""
    ranks, facts = {}, {}
    for name, rank in bench.rankers(fusion).items():
        if name in ("C", "D", "E", "F"):
            made, seconds, _ = timed(rank, bench.cases.histories)
            ranks[name] = ranks_from_lists(made, bench.cases.targets)
            facts[name] = {"users_per_second": len(made) / seconds, **summarise(ranks[name], 2000, 0)}
            print(name, facts[name]["ndcg@10"], flush=True)
    against = {name: paired_bootstrap(ranks["D"], own, 2000, 0) for name, own in ranks.items() if name != "D"}
    return {"users": len(bench.cases.users), "rows": facts, "minus_D": against}


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    speed = {name: facts["users_per_second"] for name, facts in rows.items()}
    ours = [facts for name, facts in rows.items() if name not in "AB"]
    return {
        "C_vs_A_users": speed["C"] / speed["A"],
        "D_vs_B_users": speed["D"] / speed["B"],
        "D_strict_vs_B_users": speed["D strict"] / speed["B"],
        "E_vs_A_users": speed["E"] / speed["A"],
        "valid_share": min(facts["valid_share"] for facts in ours),
        "distinct_share": min(facts["distinct_share"] for facts in ours),
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
            *(cell(facts[m]) for m in ("recall@1", "recall@10", "ndcg@10")),
        ]
        for name, facts in results["rows"].items()
    ]
    return markdown(head, rows)


def pages(results: dict[str, Any]) -> str:
    """All parts as Markdown."""
    equal, quality, grown = results["equal"], results["quality"], results["scale"]
    parts = [
        table(results),
        f"{results['setting']}; [95% bootstrap interval over users].",
        "\n".join(f"- `{key}`: {value:.4g}" for key, value in results["ratios"].items()),
        f"In fp32, {equal['users']} users, all 20 beams, seen items allowed: {equal['identical_lists']:.1%} of the "
        "lists of `beam_search(strict=True)` are transformers' item by item, "
        f"{equal['identical_up_to_ties']:.1%} up to ties of {equal['tie_nats']:g} nats; "
        f"{equal['strict_vs_transformers_users']:.3g}x its users/s.",
        f"On {quality['users']:,} test users (fusion {quality['fusion_on_validation'][0]['fusion']:g}, by validation):",
        markdown(
            ["row", "users/s", "R@1", "R@10", "N@10", "N@10 minus D"],
            [
                [
                    f"{name} {ROWS[name]}",
                    f"{facts['users_per_second']:.3g}",
                    *(cell(facts[m]) for m in ("recall@1", "recall@10", "ndcg@10")),
                    difference(quality["minus_D"].get(name, {}).get("ndcg@10")),
                ]
                for name, facts in quality["rows"].items()
            ],
        ),
        f"Users/s as the catalogue, the history and the beams grow ({grown['users']} users; {grown['note']}):",
        *(
            markdown(
                [label, *next(iter(grown[key].values()))],
                [[size, *(f"{v:.3g}" for v in speeds.values())] for size, speeds in grown[key].items()],
            )
            for key, label in (("catalogue", "items"), ("history", "history"), ("beams", "beams"))
        ),
    ]
    return "\n\n".join(parts)


def cell(interval: dict[str, float]) -> str:
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def difference(facts: dict[str, float] | None) -> str:
    return f"{facts['difference']:+.4f} [{facts['low']:+.4f}, {facts['high']:+.4f}]" if facts else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--quality-users", type=int, default=2000)
    parser.add_argument("--equal-users", type=int, default=40)
    parser.add_argument("--only", choices=["train", "rows", "equal", "quality", "scale"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "recommend_cpu.json")
    options = parser.parse_args()
    quiet_libraries()
    run = Run.start(check_recipe(recipe_values(options.data, options.steps)), options.runs)
    train_run(run)
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    for part in ("rows", "equal", "quality", "scale"):
        if options.only in (None, part):
            results[part] = measure(part, run, options)
            results |= about(options, run, results)
            write_json(options.out, results)
    if "rows" in results:
        print(table(results))


def measure(part: str, run: Run, options: argparse.Namespace) -> Any:
    users = {"rows": options.users, "equal": options.equal_users, "quality": options.quality_users, "scale": 32}[part]
    bench = Bench(run, users, "float32" if part == "equal" else "bfloat16")
    if part == "equal":
        return measure_equal(bench, options.equal_users)
    if part == "scale":
        return scale(bench.model, bench.encoder, bench.catalogue, options.data)
    tried = tune_fusion(bench.recommender(strategy="rerank"), bench.validation, exclude_seen=True)
    print("fusion on validation:", tried[0], flush=True)
    if part == "rows":
        return measure_rows(bench, tried[0].fusion, run.folder)
    return {"fusion_on_validation": [vars(t) for t in tried], **measure_quality(bench, tried[0].fusion)}


def about(options: argparse.Namespace, run: Run, results: dict[str, Any]) -> dict[str, Any]:
    stage = json.loads(run.stages[0].metrics.read_text(encoding="utf-8"))
    return {
        "command": f"python benchmarks/recommend.py --steps {options.steps}",
        "setting": f"SmolLM2-135M-Instruct, bf16, trained {options.steps} steps of 16 rows on amazon18_scientific "
        f"({stage['valid_nats_before']:.2f} to {stage['valid_nats_merged']:.2f} validation nats an item); "
        f"{options.users} test users, seen items masked, blocks of {BLOCK} users in turn, medians",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "hardware": hardware(),
        **({"ratios": ratios(results["rows"])} if "rows" in results else {}),
    }


if __name__ == "__main__":
    main()
