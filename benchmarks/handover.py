"""What is lost between an adapter and the weights a user downloads (docs/handover.md).

    python benchmarks/handover.py [--data ../shared/data] [--steps 100] [--only merge|handover] [--out FILE]

SmolLM2-135M in NF4, LoRA r=16: a joint stage on slices of two Amazon-2014 domains and the target, then a stage on
amazon18_scientific, handed over by `merge` and by `continue`. Then: the adapter on its live 4-bit base against its
merges, and a merge's peak memory and time against copying the same bytes. Needs the shared data; training resumes.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from amazon import WORDING, domain
from transformers import LlamaConfig, LlamaForCausalLM

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.evaluate.tables import interval_cell
from calrec_lite.files import write_json
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import paired_bootstrap, summarise
from calrec_lite.method.batch import Collator
from calrec_lite.method.rows import Rows, validation_rows
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import add_adapter, load_model
from calrec_lite.model.merge import merge_adapter
from calrec_lite.model.parity import parity
from calrec_lite.recipe import Base, Lora
from calrec_lite.recipe.file import check_recipe, load_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.sources import fetch
from calrec_lite.training.stage import train_run
from calrec_lite.training.validation import validation_loss

ROOT = Path(__file__).parents[1]
USERS = 300
ROUNDS = 5


def recipe_values(data: Path, handover: str, steps: int) -> dict[str, Any]:
    """The two-stage run as plain data."""
    base = load_recipe_base()
    return {
        "name": f"handover-{handover}",
        "base": {**base, "load_in_4bit": True},
        "domains": {
            "toys": domain(data, "amazon14_toys", 500),
            "beauty": domain(data, "amazon14_beauty", 500),
            "scientific": domain(data, "amazon18_scientific", 4000),
        },
        "text": {**WORDING, "max_items": 6, "max_item_tokens": 32},
        "stages": [
            {"name": "joint", "domains": ["toys", "beauty", "scientific"], "max_steps": steps},
            {"name": "target", "domains": ["scientific"], "max_steps": steps, "handover": handover},
        ],
        "optim": {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 6e-4, "valid_users": USERS},
        "recommend": {"strategy": "beam"},
        "evaluate": {"domain": "scientific", "users": USERS},
    }


def load_recipe_base() -> dict[str, Any]:
    """The demo's base."""
    return {"model": load_recipe("demo").base.model}


def trained(data: Path, runs: Path, steps: int) -> dict[str, Run]:
    """Both runs; the joint stage is trained once and copied."""
    found: dict[str, Run] = {}
    for handover in ("merge", "continue"):
        run = Run.start(check_recipe(recipe_values(data, handover, steps)), runs)
        joint = run.stages[0].folder
        if found and not run.stages[0].done:
            shutil.copytree(found["merge"].stages[0].folder, joint, dirs_exist_ok=True)
            shutil.copytree(found["merge"].folder / "domains", run.folder / "domains", dirs_exist_ok=True)
        train_run(run)
        found[handover] = run
    return found


class Measure:
    """Validation loss and NDCG@10 of a model on the same users of the target domain."""

    def __init__(self, run: Run) -> None:
        self.run, domain = run, run.domain("scientific")
        catalogue = run.catalogue("scientific")
        loss = run.recipe.loss.model_copy(update={"targets": "last", "alpha": 0.0, "beta": 0.0})
        self.rows = Rows([validation_rows(domain, catalogue, run.encoder, USERS, 0)], run.encoder)
        self.collator = Collator(
            {"scientific": catalogue}, loss, int(run.encoder.start[0]), run.encoder.pad, 8, held_out=True
        )
        self.cases = build_cases(domain, "test", USERS, 0)
        self.protocol = Protocol(users=USERS)
        self.ranks: dict[str, Any] = {}

    def __call__(self, name: str, model: torch.nn.Module) -> dict[str, Any]:
        towers = Towers(model)
        nats = validation_loss(towers, self.rows, self.collator, progress=False)
        run = self.run
        ids = run.domain("scientific").catalogue.ids
        options = run.recipe.recommend.model_copy(update={"batch_tokens": 8192})  # 4 bits are unpacked once a forward
        recommender = Recommender(towers, run.encoder, run.catalogue("scientific"), ids, options)
        ranks = evaluate_system(recommender, self.cases, self.protocol).ranks
        self.ranks[name] = ranks
        facts = {"valid_nats_per_item": nats, "ndcg@10": summarise(ranks, 2000, 0)["ndcg@10"]}
        print(name, facts, flush=True)
        return facts


def live_model(run: Run, index: int) -> torch.nn.Module:
    """A stage's adapter on the 4-bit base it was trained on."""
    merging = run.recipe.stages[index].handover == "merge" and index > 0
    base = run.stages[index - 1].merged if merging else run.base
    model = load_model(base, run.loading)
    return add_adapter(model, run.loading, carried=run.stages[index].adapter)


def variants(runs: dict[str, Run], work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of the table, and the parity of the merged against the live adapter."""
    run, base = runs["merge"], runs["merge"].loading
    measure = Measure(run)
    rows = {"stage 1: adapter live": measure("stage 1: adapter live", live_model(run, 0))}
    live = live_model(run, 1)
    rows["stage 2 (merge): adapter live"] = measure("stage 2 (merge): adapter live", live)
    shutil.rmtree(work / "dequantized", ignore_errors=True)
    merge_adapter(run.stages[0].merged, run.stages[1].adapter, work / "dequantized", "dequantized")
    full = load_model(run.final(), base, quantised=False)
    rows["merged on original"] = measure("merged on original", full)
    agreement = measured_parity(measure, live, full)
    rows["merged on dequantised"] = measure("merged on dequantised", load_model(work / "dequantized", base, False))
    rows["merged, re-quantised"] = measure("merged, re-quantised", load_model(run.final(), base))
    other = runs["continue"]
    rows["stage 2 (continue): adapter live"] = measure("stage 2 (continue): adapter live", live_model(other, 1))
    rows["stage 2 (continue): merged on original"] = measure(
        "stage 2 (continue): merged on original", load_model(other.final(), base, quantised=False)
    )
    paired = paired_bootstrap(
        measure.ranks["merged on original"], measure.ranks["stage 2 (continue): merged on original"], 2000, 0
    )
    return rows, {"parity": agreement, "continue_minus_merge": paired}


@torch.no_grad()
def measured_parity(measure: Measure, one: torch.nn.Module, other: torch.nn.Module) -> dict[str, float]:
    """Logits of two models over the tokens of 32 validation rows."""

    def logits(model: torch.nn.Module) -> Any:
        towers = Towers(model)
        towers.decoder.eval()
        for i in range(32):
            ids = torch.from_numpy(measure.rows[i].tokens).unsqueeze(0)
            yield (towers.states(ids) @ towers.head.T)[0]

    return vars(parity(logits(one), logits(other)))


def big_model(work: Path) -> tuple[Path, Path]:
    """A base of 1.1 billion random bf16 weights in shards of at most 500 MB, and an adapter for it."""
    base, adapter = work / "big", work / "big-adapter"
    if not (adapter / "adapter_model.safetensors").is_file():
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            tie_word_embeddings=False,
        )
        with torch.device("meta"):
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.normal_(std=0.02)
        model.save_pretrained(base, max_shard_size="500MB")
        adapted = add_adapter(model, Base(model="big", load_in_4bit=False, lora=Lora()))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02)
        adapted.save_pretrained(str(adapter))
    return base, adapter


PROBE = """
import sys, time
from pathlib import Path
from calrec_lite.model.merge import merge_adapter
def memory(key):
    return int(Path("/proc/self/status").read_text().partition(key + ":")[2].split()[0]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
before = memory("VmRSS")
start = time.perf_counter()
merge_adapter(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), progress=False)
print(time.perf_counter() - start, memory("VmHWM") - before)
"""


def merge_cost(work: Path) -> dict[str, float]:
    """Peak memory beyond the imports, and time, interleaved with copying the same files; medians."""
    base, adapter = big_model(work)
    shards = sorted(base.glob("*.safetensors"))
    times, peaks, copies = [], [], []
    for _ in range(ROUNDS):
        for folder in ("merged", "copied"):
            shutil.rmtree(work / folder, ignore_errors=True)
        command = [sys.executable, "-c", PROBE, str(base), str(adapter), str(work / "merged")]
        seconds, peak = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        (work / "copied").mkdir()
        start = time.perf_counter()
        for shard in shards:
            (work / "copied" / shard.name).write_bytes(shard.read_bytes())
        copies.append(time.perf_counter() - start)
        times.append(seconds)
        peaks.append(peak)
    return {
        "model_bytes": float(sum(s.stat().st_size for s in shards)),
        "largest_shard_bytes": float(max(s.stat().st_size for s in shards)),
        "peak_bytes": statistics.median(peaks),
        "merge_seconds": statistics.median(times),
        "copy_seconds": statistics.median(copies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "handover")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", choices=["merge", "handover"], help="measure this, keep the other part of --out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "handover_cpu.json")
    options = parser.parse_args()
    quiet_libraries()
    fetch(load_recipe_base()["model"])
    kept = options.only and options.out.is_file()
    results: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if kept else {}
    if options.only != "handover":
        results["merge"] = merge_cost(options.runs)
        print(json.dumps(results["merge"]), flush=True)
    if options.only != "merge":
        rows, compared = variants(trained(options.data, options.runs, options.steps), options.runs)
        results |= {"rows": rows, **compared}
        results["setting"] = (
            f"SmolLM2-135M-Instruct, NF4, LoRA r=16; {options.steps} steps a stage; {USERS} users of "
            "amazon18_scientific, validation loss and test lists"
        )
    results |= {
        "command": f"python benchmarks/handover.py --steps {options.steps}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "hardware": hardware(),
    }
    if {"merge", "rows"} <= results.keys():
        results["ratios"] = ratios(results)
        print(table(results))
    write_json(options.out, results)


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The four figures to hold against what is wanted (docs/handover.md)."""
    cost, rows = results["merge"], results["rows"]
    after = {key: rows[f"stage 2 ({key}): adapter live"]["valid_nats_per_item"] for key in ("merge", "continue")}
    return {
        "merge_peak_vs_largest_shard": cost["peak_bytes"] / cost["largest_shard_bytes"],
        "merge_time_vs_copy": cost["merge_seconds"] / cost["copy_seconds"],
        "parity_top1_agreement": results["parity"]["top1_agreement"],
        "continue_vs_merge_valid_loss": after["continue"] / after["merge"],
    }


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| weights | validation nats an item | NDCG@10 [95%] |", "|---|--:|--:|"]
    for name, facts in results["rows"].items():
        lines.append(f"| {name} | {facts['valid_nats_per_item']:.3f} | {interval_cell(facts['ndcg@10'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
