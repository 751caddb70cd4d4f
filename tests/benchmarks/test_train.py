"""The training benchmark's own code, at small sizes: every row trains, and what its tables are made of adds up."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("trl", reason="benchmarks need pip install -e '.[bench]'")
pytest.importorskip("datasets", reason="benchmarks need pip install -e '.[bench]'")

import train
import train_gpu
import train_ladder
import train_quality
from train_ladder import LADDER
from train_rows import WHAT, Bench, Run, build, check_recipe
from train_tables import ratios, table

from tests.conftest import item_names, needs_compiler, slow


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    names, rng = item_names(30), np.random.default_rng(0)
    lines = ["user,item,time,title"]
    for user in range(40):
        start = rng.integers(30)
        lines += [f"{user},{(start + t) % 30},{t},{names[(start + t) % 30]}" for t in range(rng.integers(5, 12))]
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    recipe = {
        "name": "bench",
        "base": {"model": str(tiny_folder), "lora": {"r": 4}},
        "domains": {
            "shop": {
                "interactions": str(folder / "shop.csv"),
                "fields": {"Title": "title"},
                "columns": {"time": "time"},
            }
        },
        "text": {"max_items": 6},
        "stages": [{"name": "target", "domains": ["shop"], "max_steps": 1}],
    }
    return Bench("shop", "bf16", folder, folder, Run.start(check_recipe(recipe), folder))


@pytest.mark.parametrize("row", [*WHAT, *LADDER])
def test_every_row_trains_what_it_says(bench: Bench, tmp_path: Path, row: str) -> None:
    some = np.arange(16)
    system = build(row, bench, 8, 4, tmp_path, some)
    before = {n: p.detach().clone() for n, p in system.trainer.model.named_parameters() if p.requires_grad}
    counts = list(system.steps(some))
    assert sum(c.rows for c in counts) == 16
    rows = [system.rows[int(i)] for i in some]
    every = row in ("E", "F") or (row in LADDER and row != "E: one target a row")
    assert sum(c.targets for c in counts) == (sum(len(r.items) - 1 for r in rows) if every else 16)
    changed = [n for n, p in system.trainer.model.named_parameters() if n in before and not torch.equal(before[n], p)]
    assert len(changed) == len(before)


def test_trl_reads_the_very_ids_we_train_on(bench: Bench, tmp_path: Path) -> None:
    some = np.arange(8)
    system = build("A", bench, 8, 8, tmp_path, some)
    for i, theirs in zip(some, system.data):
        row = bench.last[int(i)]
        assert theirs["input_ids"] == row.tokens.tolist()
        supervised = np.flatnonzero(np.array(theirs["labels"]) != -100)
        assert supervised.tolist() == list(range(row.starts[-1], len(row.tokens)))


@pytest.mark.parametrize(
    "row", [r for r in LADDER if r not in ("E: one target a row", "E: all targets of a row contrasted")]
)
def test_a_rung_is_slower_but_computes_the_same(bench: Bench, tmp_path: Path, row: str) -> None:
    """Taking a measure away changes cost, never the objective."""
    losses = []
    for name in ("E", row):
        system = build(name, bench, 8, 8, tmp_path, np.arange(8))
        batch = system.trainer.collator([system.rows[i] for i in range(8)])
        losses.append(float(system.trainer._attempt(batch).loss))
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


def test_rungs_really_differ(bench: Bench, tmp_path: Path) -> None:
    """What a rung takes away is gone."""
    made = {}
    for row in ("E", "E: widths not in multiples of 32", "E: equal texts encoded again", "E: micro-batch 4"):
        system = build(row, bench, 8, 8, tmp_path, np.arange(8))
        made[row] = system.trainer.collator([system.rows[i] for i in (0, 0, 1, 2, 3, 4, 5, 6)])
    widths = [batch.chunks[0].ids.shape[1] for batch in made.values()]
    assert widths[0] % 32 == 0
    assert widths[1] == len(made["E"].rows[0].tokens)
    texts = [sum(len(part.ends) for part in batch.items) for batch in made.values()]
    assert texts[2] == len(made["E"].anchor_item) > texts[0]
    assert [len(batch.chunks) for batch in made.values()] == [1, 1, 1, 2]
    masked = build("E: an attention mask", bench, 8, 8, tmp_path, np.arange(8)).trainer
    full = build("E: LM head at every position", bench, 8, 8, tmp_path, np.arange(8)).trainer
    assert type(masked.towers).__name__ == "Masked"
    assert type(full.towers).__name__ == "FullHead"
    kinds = ["E: padding run too", "E: padding run too, two forwards", "E: adapters by PEFT"]
    towers = [build(row, bench, 8, 8, tmp_path, np.arange(8)).trainer.towers for row in kinds]
    assert [own.join for own in towers] == ["padded", None, "one by one"]
    assert [own.fuses for own in towers] == [True, True, False]
    casts = build("E: PEFT casts inputs to fp32", bench, 8, 8, tmp_path, np.arange(8)).trainer.model.modules()
    assert all(m.cast_input_dtype_enabled for m in casts if isinstance(m, LoraLayer))


def test_the_two_ways_to_micro_batches_agree_on_the_gradient(bench: Bench, tmp_path: Path) -> None:
    found = []
    for name in ("E: micro-batch 4", "E: micro-batch 4, graphs kept"):
        system = build(name, bench, 8, 4, tmp_path, np.arange(8))
        model = system.trainer.model.float()
        system.trainer.towers.autocast = False
        system.trainer._attempt(system.trainer.collator([system.rows[i] for i in range(8)]))
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-5 * max(1e-3, float(value.abs().max())))


def test_quality_goes_on_where_it_stopped(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_quality, "Bench", lambda *arguments: bench)
    options = SimpleNamespace(quality_minutes="0.02,0.04", data=tmp_path, runs=tmp_path, users=10)
    done: dict[str, dict] = {}

    class Results:
        def part(self, name: str, key: str, measure) -> None:
            if key not in done:
                done[key] = measure()

    train_quality.run(Results(), SimpleNamespace(**{**vars(options), "quality_minutes": "0.02"}))
    assert set(done) == {"untouched 0", *(f"{row} 0.02" for row in "AEF")}
    train_quality.run(Results(), options)
    for row in "AEF":
        assert done[f"{row} 0.04"]["steps"] > done[f"{row} 0.02"]["steps"] > 0 == done["untouched 0"]["steps"]
        assert done[f"{row} 0.04"]["nats_per_item"] != done["untouched 0"]["nats_per_item"]
    assert {name for name, facts in done.items() if "as_trained" not in facts} == {"F 0.02", "F 0.04"}
    assert all(f["as_trained"]["nats_per_item"] != f["nats_per_item"] for f in done.values() if "as_trained" in f)
    assert "NDCG" in table({"quality": done})


def test_ratios_and_tables() -> None:
    def facts(rate: float) -> dict[str, float]:
        return {f"{k}_per_second": rate for k in ("targets", "rows", "tokens")} | {"seconds_a_step": 1 / rate}

    rows = {name: facts(rate) for name, rate in (("A", 1.0), ("C", 2.5), ("D", 2.0), ("E", 9.0))}
    values = {"throughput": {"ml100k bf16": rows}, "memory": {}}
    values["step"] = {"ml100k bf16": dict(zip(train_ladder.STEP, (facts(1.5), facts(1.0))))}
    for row, batch, peak in (("A", 16, 4.0), ("D", 16, 2.0), ("E", 16, 2.0), ("E", 256, 2.2)):
        values["memory"][f"ml100k bf16 {row} batch {batch} micro 4"] = {"peak_bytes": peak, "before_first_step": 1.0}
    found = ratios(values)
    assert found == {
        "E_vs_A_targets_ml100k": 9.0,
        "D_vs_A_rows": 2.0,
        "D_vs_C_time": 1.25,
        "step_new_vs_old_checkpointed": 1.5,
        "peak_D_vs_A": 0.5,
        "peak_256_vs_16": 1.1,
    }
    for batch in (16, 256):  # in the other dtype, where one of them is not there
        values["memory"][f"ml100k fp32 E batch {batch} micro 4"] = {"peak_bytes": 3.0, "before_first_step": 1.0}
    assert ratios(values) == found
    del values["memory"]["ml100k bf16 E batch 256 micro 4"]
    assert ratios(values) == found | {"peak_256_vs_16": 1.0}
    assert "| ml100k bf16 | E: ours, `targets: all`, full objective | 9.00 |" in table(json.loads(json.dumps(values)))


@pytest.mark.parametrize("who", ["ours", "ours, offload", "ours, as before", "ours, softmax: catalogue", "TRL"])
def test_the_gpu_part_at_a_small_size(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.setattr(train_gpu, "base_folder", lambda base: tiny_folder)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    facts = train_gpu.WHO[who](config, torch.device("cpu"), 4, 120, 2)
    assert facts["tokens_per_second"] > 0
    assert facts["targets"] == (4 if who == "TRL" else 8)


@slow  # compiles for minutes
@needs_compiler
def test_compiled_layers_beside_eager_ones() -> None:
    tiny = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(**(train_gpu.SMALL | tiny | {"num_attention_heads": 4, "num_key_value_heads": 2}))
    facts = train_gpu.compiled(config, torch.device("cpu"), 4, 120, 1)
    assert {*facts} == {"eager", "compiled", *train_gpu.AWAY}
    assert all(f["gradient_difference"] < 0.05 and f["tokens_per_second"] > 0 for f in facts.values())  # bf16
    assert [f["join"] for f in facts.values()] == ["one by one", "one by one", "padded", None, None, None]
    assert "| eager |" in table({"compile": {"tiny": facts}})


def test_random_weights_are_really_in_four_bits() -> None:
    config = train_gpu.shape("Llama-3.2-1B")
    config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size = 1, 128, 256, 64
    config.num_attention_heads, config.num_key_value_heads = 2, 1
    model = train_gpu.random_nf4(config, torch.device("cpu"))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.uint8
    assert weight.numel() == 128 * 256 // 2
    assert weight.quant_state.nested  # double quantisation
    assert not any(p.is_meta for p in model.parameters())


def test_rounds_are_alike_and_hold_whole_steps(bench: Bench) -> None:
    rounds = train.drawn(bench.every, 2, 2)
    assert all(len(rows) == 2 * train.BATCH for rows in rounds)
    for rows in rounds:
        short, long = (bench.every.length[rows[at : at + train.BATCH]].sum() for at in (0, train.BATCH))
        assert short <= long


def test_the_timed_table(bench: Bench, tmp_path: Path) -> None:
    found = train.timed(["A", "E"], bench, 1, 1, tmp_path)
    for row, facts in found.items():
        assert facts["rows_per_second"] * facts["seconds_a_step"] == pytest.approx(16), row
    assert found["A"]["targets_per_second"] == found["A"]["rows_per_second"]
    assert found["E"]["targets_per_second"] > 2 * found["E"]["rows_per_second"]
    assert train.timed(["A", "E"], bench, 1, 1, tmp_path) == found  # kept
    longer = train.timed(["A", "E"], bench, 2, 1, tmp_path)
    assert longer["A"]["every_round"][0] == found["A"]["every_round"][0]
    assert len(longer["A"]["every_round"]) == 2
    assert list(train.timed(["A", "C"], bench, 1, 1, tmp_path)) == ["A", "C"]  # a round without C is no whole one
