"""How lists are made, how fast, and how good they are: transformers' `generate` against the four strategies.

    python benchmarks/recommend.py [--run RUN] [--only rows|equal|quality|scale] [--out FILE]

SmolLM2-135M trained on amazon18_scientific, bf16: RUN (one of benchmarks/handover.py), or one stage of --steps.
`rows`: blocks of users, every row on each block in turn, medians over blocks; A and B take one user at a time, ours
batches. `equal`: in fp32, the lists of transformers' beam search against those of ours that prunes as it does, and
against those of ours that does not. `quality`: beam, dense and rerank on more users. `scale`: users/s against catalogue
size, history length and beams. Needs the shared data; a part measured before is kept in --out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from amazon import WORDING, domain
from recommend_rivals import SampleAndGround, TrieBeams, unseen
from recommend_scale import BATCH_TOKENS, scale
from recommend_tables import ROWS, table

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.decode.beam import beam_search
from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.ranked import Ranked
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.evaluate.tune import tune_fusion
from calrec_lite.files import write_json
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.measure.metrics import paired_bootstrap, ranks_from_lists, summarise
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import load_model
from calrec_lite.recipe import Recipe
from calrec_lite.recipe.file import check_recipe, load_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.batching import batches
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run

ROOT = Path(__file__).parents[1]
BLOCK = 25  # users of one timing
K = 10
BEAMS = 20
TIE = 1e-3  # nats; in fp32 scores of transformers and ours differ by some 1e-5
Ranker = Callable[[list[np.ndarray]], Any]


def recipe_values(data: Path, steps: int) -> dict[str, Any]:
    """One stage on the target; L_UT weighs more than in the paper, for `dense` and `rerank` (docs/method.md, 6b)."""
    return {
        "name": "recommend",
        "base": {"model": load_recipe("demo").base.model, "load_in_4bit": False},
        "domains": {"scientific": domain(data, "amazon18_scientific")},
        "text": {**WORDING, "max_items": 10, "max_item_tokens": 48},
        "stages": [{"name": "target", "domains": ["scientific"], "max_steps": steps}],
        "loss": {"alpha": 0.1, "beta": 0.2, "tau": 0.1},
        "optim": {"batch_size": 16, "micro_batch_size": 8, "learning_rate": 6e-4, "save_every": 25},
        "recommend": {"strategy": "beam"},
    }


class Bench:
    """The trained model, its users, and a ranker for each row."""

    def __init__(self, run: Run, users: int, dtype: str) -> None:
        self.run = run
        domain = run.domain("scientific")
        self.cases = build_cases(domain, "test", users, 0)
        base = run.recipe.base.model_copy(update={"dtype": dtype})
        self.model = load_model(run.final(), base, quantised=False)
        self.model.eval()
        self.towers, self.encoder = Towers(self.model), run.encoder
        self.catalogue, self.ids = run.catalogue("scientific"), domain.catalogue.ids
        self.paths = TrieTensors.of(self.catalogue, "catalogue")
        self.trie_beams = TrieBeams(self.model, self.encoder, self.catalogue, BEAMS)

    def recommender(self, **options: Any) -> Recommender:
        chosen = self.run.recipe.recommend.model_copy(update={"batch_tokens": BATCH_TOKENS, **options})
        return Recommender(self.towers, self.encoder, self.catalogue, self.ids, chosen)

    def rankers(self, fusion: float) -> dict[str, Ranker]:
        def ours(recommender: Recommender) -> Ranker:
            return lambda histories: recommender.rank(histories, K, exclude_seen=True)

        sample, again = (self.recommender(strategy="sample", order=order) for order in ("likelihood", "paper"))
        share_texts(sample, again)
        sampled = SampleAndGround(self.model, self.encoder, self.catalogue, 32)
        return {
            "A": lambda histories: sampled.rank(histories, K),
            "B": lambda histories: self.trie_beams.rank(histories, K),
            "C": ours(sample),
            "C paper": ours(again),
            "D": ours(self.recommender(strategy="beam")),
            "D strict": lambda histories: [ranked.items for ranked in self.strict(histories, K, exclude_seen=True)],
            "E": ours(self.recommender(strategy="dense")),
            "F": ours(self.recommender(strategy="rerank", fusion=fusion)),
        }

    def strict(self, histories: list[np.ndarray], k: int, exclude_seen: bool) -> list[Ranked]:
        """The first `k` of what transformers' beam search would find."""
        prompts = [self.encoder.prompt([self.catalogue.tokens[i] for i in h]) for h in histories]
        found: dict[int, Ranked] = {}
        for users in batches(prompts, BATCH_TOKENS):
            with torch.no_grad():
                tree = PromptTree(self.towers, [prompts[u] for u in users], self.encoder.pad)
            allowed = np.ones((len(users), len(self.catalogue)), np.bool_)
            for row, u in zip(allowed, users) if exclude_seen else ():
                row[histories[u]] = False
            made = beam_search(tree, self.catalogue.trie, self.paths, BEAMS, k, allowed, strict=True)
            found |= zip(users, made)
        return [found[u] for u in range(len(prompts))]


def share_texts(first: Recommender, then: Recommender) -> None:
    """The texts `first` draws are those `then` ranks: the same seed draws the same, so once is enough."""
    kept: dict[bytes, Any] = {}
    draw = first.strategies.sample_texts

    def drawn(prompts: Sequence[np.ndarray]) -> Any:
        made = draw(prompts)
        kept.update((p.tobytes(), own) for p, own in zip(prompts, made))
        return made

    first.strategies.sample_texts = drawn
    then.strategies.sample_texts = lambda prompts: [kept[p.tobytes()] for p in prompts]


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


def measure_rows(bench: Bench, fusion: float, keep: Path, most: int | None = None) -> dict[str, Any]:
    """Every row on `most` blocks of users (all), in turn; a block that was measured before is read from `keep`."""
    rankers, cases = bench.rankers(fusion), bench.cases
    blocks: list[dict[str, Any]] = []
    warm = False
    for at in range(0, len(cases.users), BLOCK)[:most]:
        file = keep / f"rows-{len(cases.users)}-{at}.json"
        if not file.is_file():
            for rank in rankers.values() if not warm else ():
                rank(cases.histories[:2])  # kernels, tries, item vectors
            warm = True
            made = {name: timed(rank, cases.histories[at : at + BLOCK]) for name, rank in rankers.items()}
            write_json(file, {n: {"lists": x.tolist(), "seconds": s, "memory": m} for n, (x, s, m) in made.items()})
            print(at, {n: round(BLOCK / s, 3) for n, (_, s, _) in made.items()}, flush=True)
        blocks.append(json.loads(file.read_text(encoding="utf-8")))
    rows = {name: row_facts(name, blocks, cases) for name in rankers}
    rows["C paper"]["users_per_second"] = rows["C"]["users_per_second"]  # `share_texts`
    return rows


def row_facts(name: str, blocks: list[dict[str, Any]], cases: Cases) -> dict[str, Any]:
    lists = np.array([own for block in blocks for own in block[name]["lists"]])
    seconds = [block[name]["seconds"] / len(block[name]["lists"]) for block in blocks]
    valid = lists >= 0
    distinct = [len({i for i in own.tolist() if i >= 0}) / K for own in lists]
    return {
        "what": ROWS[name],
        "users": len(lists),
        "users_per_second": 1 / statistics.median(seconds),
        "peak_memory_bytes": max(block[name]["memory"] for block in blocks),
        "valid_share": float(valid.mean()),
        "distinct_share": float(np.mean(distinct)),
        **summarise(ranks_from_lists(lists, cases.targets[: len(lists)]), 2000, 0),
    }


def measure_equal(bench: Bench, users: int) -> dict[str, Any]:
    """In fp32: how many lists are the same as transformers', item by item: all 20 beams, and 10 unseen items."""
    histories = bench.cases.histories[:users]
    free = bench.recommender(strategy="beam", exclude_seen=False, beams=BEAMS)
    bench.strict(histories[:2], K, exclude_seen=True)
    bench.trie_beams.scored(histories[0])
    start = time.perf_counter()
    tens = [ranked.items.tolist() for ranked in bench.strict(histories, K, exclude_seen=True)]
    middle = time.perf_counter()
    theirs = [bench.trie_beams.scored(history) for history in histories]
    end = time.perf_counter()
    ours = bench.strict(histories, BEAMS, exclude_seen=False)
    best = free.rank(histories, K, exclude_seen=False)
    their_tens = [unseen(items, h, K) for (items, _), h in zip(theirs, histories)]
    return {
        "users": users,
        "lists_of_10_identical": float(np.mean([a == b for a, b in zip(tens, their_tens)])),
        "lists_of_20_identical": float(np.mean([a.items.tolist() == b[0] for a, b in zip(ours, theirs)])),
        "lists_of_20_identical_up_to_ties": float(np.mean([same_up_to_ties(a, *b) for a, b in zip(ours, theirs)])),
        "tie_nats": TIE,
        "largest_score_difference": max(float(np.abs(a.scores - np.array(b[1])).max()) for a, b in zip(ours, theirs)),
        "strict_vs_transformers_users": (end - middle) / (middle - start),
        "beam_lists_of_10_identical": float(np.mean([a.tolist() == b[0][:K] for a, b in zip(best, theirs)])),
        "beam_lists_of_10_shared_items": float(
            np.mean([len({*a.tolist()} & {*b[0][:K]}) / K for a, b in zip(best, theirs)])
        ),
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
        if name in ("D", "E", "F"):  # C is slower than D, and its figures on fewer users are in the rows
            made, seconds, _ = timed(rank, bench.cases.histories)
            ranks[name] = ranks_from_lists(made, bench.cases.targets)
            facts[name] = {"users_per_second": len(made) / seconds, **summarise(ranks[name], 2000, 0)}
            print(name, facts[name]["ndcg@10"], flush=True)
    against = {name: paired_bootstrap(ranks["D"], own, 2000, 0) for name, own in ranks.items() if name != "D"}
    return {"users": len(bench.cases.users), "rows": facts, "minus_D": against}


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    speed = {name: facts["users_per_second"] for name, facts in rows.items()}
    ours = [facts for name, facts in rows.items() if name not in ("A", "B", "D strict")]
    return {
        "C_vs_A_users": speed["C"] / speed["A"],
        "D_vs_B_users": speed["D"] / speed["B"],
        "D_strict_vs_B_users": speed["D strict"] / speed["B"],
        "E_vs_A_users": speed["E"] / speed["A"],
        "valid_share": min(facts["valid_share"] for facts in ours),
        "distinct_share": min(facts["distinct_share"] for facts in ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--run", type=Path, help="a trained run with the domain `scientific`; default: train one")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--blocks", type=int, help=f"of {BLOCK} users; default: all")
    parser.add_argument("--tuning-users", type=int, default=100)
    parser.add_argument("--quality-users", type=int, default=500)
    parser.add_argument("--equal-users", type=int, default=25)
    parser.add_argument("--only", choices=["train", "rows", "equal", "quality", "scale"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "recommend_cpu.json")
    options = parser.parse_args()
    quiet_libraries()
    run = Run.open(options.run) if options.run else Run.start(recipe(options), options.runs)
    train_run(run)
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    for part in ("rows", "equal", "quality", "scale"):
        if options.only in (None, part):
            results[part] = measure(part, run, options)
            results |= about(options, run, results)
            write_json(options.out, results)
    if "rows" in results:
        print(table(results))


def recipe(options: argparse.Namespace) -> Recipe:
    return check_recipe(recipe_values(options.data, options.steps))


def measure(part: str, run: Run, options: argparse.Namespace) -> Any:
    users = {"rows": options.users, "equal": options.equal_users, "quality": options.quality_users, "scale": 1}[part]
    bench = Bench(run, users, "float32" if part == "equal" else run.dtype.dtype)
    if part == "equal":
        return measure_equal(bench, options.equal_users)
    if part == "scale":
        return scale(bench.model, bench.encoder, bench.catalogue, options.data)
    tried = tuned(bench, options.tuning_users)
    if part == "rows":
        return measure_rows(bench, tried[0]["fusion"], run.folder, options.blocks)
    return {"fusion_on_validation": tried, **measure_quality(bench, tried[0]["fusion"])}


def tuned(bench: Bench, users: int) -> list[dict[str, float]]:
    """Each `fusion` on so many validation users, the best first; kept in the run."""
    file = bench.run.folder / f"fusion-{users}.json"
    if not file.is_file():
        cases = build_cases(bench.run.domain("scientific"), "validation", users, 0)
        tried = tune_fusion(bench.recommender(strategy="rerank"), cases, exclude_seen=True)
        write_json(file, [vars(t) for t in tried])
    return json.loads(file.read_text(encoding="utf-8"))


def about(options: argparse.Namespace, run: Run, results: dict[str, Any]) -> dict[str, Any]:
    stages = list(run.stage_metrics().values())
    steps = " + ".join(str(s["steps"]) for s in stages)
    measured = next(iter(results["rows"].values()))["users"] if "rows" in results else options.users
    trained = f"--run {run.folder.name}" if options.run else f"--steps {options.steps}"
    blocks = f" --blocks {options.blocks}" if options.blocks else ""
    return {
        "command": f"python benchmarks/recommend.py {trained}{blocks}",
        "setting": f"SmolLM2-135M-Instruct in {run.dtype.dtype}, trained for {steps} steps of "
        f"{run.recipe.optim.batch_size} rows, the last stage on amazon18_scientific (validation nats an item: base "
        f"{stages[0]['valid_nats_before']:.2f}, now {stages[-1]['valid_nats_merged']:.2f}); {measured} test "
        f"users, seen items masked; blocks of {BLOCK} users in turn, medians; A and B take one user at a time, ours "
        f"batches of {BATCH_TOKENS} prompt tokens; memory is that of the one process that holds all rows",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "hardware": hardware(),
        **({"ratios": ratios(results["rows"])} if "rows" in results else {}),
    }


if __name__ == "__main__":
    main()
