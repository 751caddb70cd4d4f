"""The CUDA part of benchmarks/train.py: real shapes, random weights, 1,024-token histories, 64 negatives.

Then what `gradient_checkpointing: offload` and `optim.compile` change, each beside a step without it; the latter on
SmolLM2-135M's shape in bf16 too, where a step waits for its host: 64 rows of few items, and there what it is without
joined towers, packing and fused adapters, with the kernels of each.

Nothing is downloaded: the model is built from its configuration on no device, and each linear layer is filled and
quantised to NF4 on the GPU by itself, so that no more than one layer is ever there in full.
"""

import gc
import tempfile
import time
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from calrec_lite.method.batch import ITEMS_AT_ONCE, Collator
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import add_adapter, base_folder
from calrec_lite.model.device import device
from calrec_lite.model.trimming import Trimmed
from calrec_lite.recipe import Base, Lora, Loss
from calrec_lite.recipe.file import load_recipe
from calrec_lite.text.encoding import Row
from calrec_lite.text.trie import Trie
from calrec_lite.training.mfu import StepFlops, matmul_rate

ROWS, TOKENS, ITEM = 64, 1024, 32  # rows of a step, tokens of a row, tokens of an item
ITEMS = 2000
SHAPES = {
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    },
    "Llama-3.2-3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
    },
    "Llama-3.1-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
MICRO = (1, 4, 16)
WARM = 8  # a step before the timed one has so many times fewer rows, but a whole micro-batch
PARTS = ("gpu", "measures", "away", "compile")  # of the results file
SETTING = f"random weights, LoRA r=16, {ROWS} rows a step; in 4 bits: rows of {TOKENS:,} tokens, gradient checkpointing"
AWAY: dict[str, dict[str, Any]] = {  # what is set in `Towers` to take a measure away
    "adapters by PEFT": {"fuses": False},
    "padding run too": {"join": "padded"},
    "padding run too, two forwards": {"join": None},
    "as before": {"join": None, "fuses": False},
}
SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def shape(name: str) -> LlamaConfig:
    """A configuration as its maker published it (meta-llama's config.json)."""
    small = name != "Llama-3.1-8B"
    return LlamaConfig(
        **SHAPES[name],
        vocab_size=128256,
        num_key_value_heads=8,
        head_dim=64 if name == "Llama-3.2-1B" else 128,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=small,
        attn_implementation="sdpa",
    )


def random_nf4(config: LlamaConfig, where: torch.device) -> LlamaForCausalLM:
    """A model of that shape with random NF4 weights, made layer by layer; embeddings and head in bf16."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(model.model.get_submodule(parent), own, _random_linear(layer, where))
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(where)
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                filled = torch.empty(parameter.shape, dtype=torch.bfloat16, device=where)
                filled = filled.fill_(1.0) if parameter.dim() == 1 else filled.normal_(std=0.02)
                setattr(module, key, nn.Parameter(filled, requires_grad=False))
    model.tie_weights()
    model.is_loaded_in_4bit = True
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model.config.use_cache = False
    return model


def _random_linear(layer: nn.Linear, where: torch.device) -> Linear4bit:
    options: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    new = Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta", **options
    )
    weight = torch.empty(layer.weight.shape, dtype=torch.bfloat16, device=where).normal_(std=0.02)
    new.weight = Params4bit(weight, requires_grad=False, **options)
    return new.to(where)  # quantises


def random_rows(vocabulary: int, rows: int, tokens: int) -> tuple[EncodedCatalogue, list[Row]]:
    """Histories of random items; every item has the same length and its own ids."""
    draw = np.random.default_rng(0)
    most = min(vocabulary, 30_000)
    items = [np.array([*draw.integers(10, most, ITEM - 1), 5]) for _ in range(ITEMS)]
    trie = Trie.build(items)
    names = [str(i) for i in range(ITEMS)]
    bias = np.zeros(len(trie.token), np.float32)
    catalogue = EncodedCatalogue("random", names, names, items, trie, bias, np.ones(ITEMS, np.int64), 1.0)
    made, each = [], tokens // (ITEM + 8)
    for _ in range(rows):
        own = draw.integers(0, ITEMS, each)
        pieces, starts = [np.array([1])], []
        for i in own:
            pieces += [np.arange(10, 18), items[i]]
            starts.append(sum(map(len, pieces)) - ITEM)
        begin = np.array(starts)
        made.append(Row(np.concatenate([*pieces, [2]]), begin, begin + ITEM, own, "random"))
    return catalogue, made


class OffloadedByTRL(Towers):
    """`offload` by TRL: its copies run on a stream of their own, beside the computing. One manager a step: it counts
    what a backward pass has taken back, and a step that ran out of memory takes nothing back. Needs an accelerator."""

    def begin(self) -> None:
        """Before a step."""
        from trl.models.activation_offloading import OffloadActivations

        self.saved = OffloadActivations()

    def _saving(self) -> Any:
        return self.saved


def ours(
    config: LlamaConfig,
    where: torch.device,
    rows: int,
    tokens: int,
    micro: int,
    offload: bool = False,
    compiled: bool = False,
    by_trl: bool = False,
    softmax: Literal["vocabulary", "catalogue"] = "vocabulary",
    away: str | None = None,
) -> dict[str, float]:
    """Row E of the table: all targets, full objective, vocabulary softmax, checkpointing, `rows` negatives.

    As in training the device holds the rows of embedding and head that are read, and no others.
    """
    base = Base(model="random", lora=Lora())
    model = add_adapter(random_nf4(config, where), base, True).train()
    towers = OffloadedByTRL(model, True) if by_trl else Towers(model, offload)
    loss = Loss(softmax=softmax, contrast_per_row=1)
    catalogue, made = random_rows(config.vocab_size, rows, tokens)
    read = [np.array([0, 1]), *catalogue.tokens, *(row.tokens for row in made)]
    Trimmed(model, np.unique(np.concatenate(read)), softmax == "catalogue")
    at_once = None if where.type == "cuda" else ITEMS_AT_ONCE  # as the trainer does
    if compiled:
        towers.compile()
    vars(towers).update(AWAY[away] if away else {})
    collator = Collator({"random": catalogue}, loss, 1, 0, micro, None, at_once)
    batch = collator(made)
    # What offload pins is had in a step of all rows.
    few = made if towers.offload else made[: max(micro, rows // WARM)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(rows: list[Row]) -> None:  # with the tensors' making, as in TRL's below
        if isinstance(towers, OffloadedByTRL):
            towers.begin()
        two_tower_step(towers, collator(rows).to(where), loss, lambda scalar: scalar.backward())
        optimizer.step()
        optimizer.zero_grad()

    facts = timed(partial(step, made), where, 1, batch.tokens, partial(step, few))
    rate = matmul_rate(where, torch.bfloat16)
    mfu = StepFlops(towers.decoder, config)(batch) / facts["seconds_a_step"] / rate
    return {**facts, "micro_batch_size": micro, "targets": batch.targets, "mfu": mfu, "matmul_rate": rate}


def theirs(config: LlamaConfig, where: torch.device, rows: int, tokens: int, micro: int) -> dict[str, float]:
    """TRL's SFTTrainer on the same model and rows, the last item of each as the completion, its own defaults."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = add_adapter(random_nf4(config, where), Base(model="random", lora=Lora()), True)
    made = random_rows(config.vocab_size, rows, tokens)[1]
    data = Dataset.from_list(
        [
            {
                "input_ids": r.tokens.tolist(),
                "completion_mask": (np.arange(len(r.tokens)) >= r.starts[-1]).astype(int).tolist(),
            }
            for r in made
        ]
    )
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            completion_only_loss=True,
            report_to="none",
            disable_tqdm=True,
            use_cpu=where.type == "cpu",
            save_strategy="no",
        )
        tokenizer = AutoTokenizer.from_pretrained(base_folder(load_recipe("demo").base))
        trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
        trainer.create_optimizer()

        def step(micro_batches: int) -> None:
            trainer.current_gradient_accumulation_steps = micro_batches
            loader = iter(trainer.get_train_dataloader())
            parts, items = trainer.get_batch_samples(loader, micro_batches, trainer.args.device)
            for part in parts:
                trainer.training_step(trainer.model, part, items)
            trainer.optimizer.step()
            trainer.model.zero_grad()

        few = max(1, rows // WARM // micro)
        facts = timed(partial(step, rows // micro), where, 1, sum(len(r.tokens) for r in made), partial(step, few))
    return {**facts, "micro_batch_size": micro, "targets": rows}


def compiled(
    config: LlamaConfig, where: torch.device, rows: int, tokens: int, steps: int, compiles: bool = True
) -> dict[str, Any]:
    """A step in bf16, the optimiser's part left out: as it is, with measures taken away, with CUDA graphs, compiled.

    With how far gradients differ from those of the first, and how texts share a call of the decoder (`join`)."""
    with where:
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = add_adapter(model, Base(model="random", lora=Lora())).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    loss, plain = Loss(), Towers(model)
    catalogue, made = random_rows(config.vocab_size, rows, tokens)
    batch = Collator({"random": catalogue}, loss, 1, 0, rows, None, None)(made).to(where)

    def gradient(towers: Towers) -> torch.Tensor:
        two_tower_step(towers, batch, loss, lambda scalar: scalar.backward())
        found = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
        model.zero_grad()
        return found

    expected = gradient(plain)

    def measured(towers: Towers) -> dict[str, Any]:
        begin = time.perf_counter()
        got = gradient(towers)
        first = {"seconds_of_first": time.perf_counter() - begin, "join": towers.join}
        differs = float((got - expected).norm() / expected.norm())
        again = partial(gradient, towers)
        return {**first, "gradient_difference": differs, **timed(again, where, steps, batch.tokens), **kernels(again)}

    found = {"eager": measured(plain)}
    for name, change in AWAY.items():
        towers = Towers(model)
        vars(towers).update(change)
        found[name] = measured(towers)
    if plain.join == "at once":  # on a GPU alone
        towers = Towers(model)
        towers.replay(max(len(row.tokens) for row in made))
        found["CUDA graphs"] = measured(towers) | {"reserved_bytes": torch.cuda.max_memory_reserved(where)}
    if compiles:  # last: layers stay compiled
        towers = Towers(model)
        towers.compile()
        found["compiled"] = measured(towers)
    return found


def kernels(step: Any) -> dict[str, float]:
    """How many kernels a step launches on the GPU, and for how long they run; nothing of a CPU."""
    with profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU]) as seen:
        step()
    events = [e for e in seen.key_averages() if e.self_device_time_total > 0]
    return {
        "kernels": sum(e.count for e in events),
        "busy_seconds": sum(e.self_device_time_total for e in events) / 1e6,
    }


def timed(step: Any, where: torch.device, steps: int, tokens: int, warm: Any = None) -> dict[str, float]:
    """Seconds a step after one (or `warm`) that is not timed, and the peak of both."""
    cuda = where.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(where)
    (warm or step)()
    if cuda:
        torch.cuda.synchronize(where)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if cuda:
        torch.cuda.synchronize(where)
    seconds = (time.perf_counter() - begin) / steps
    peak = torch.cuda.max_memory_allocated(where) if cuda else 0
    return {"seconds_a_step": seconds, "tokens_per_second": tokens / seconds, "peak_bytes": peak}


WHO = {
    "ours": ours,
    "ours, offload": partial(ours, offload=True),
    "ours, offload by TRL": partial(ours, by_trl=True),
    "ours, compiled layers": partial(ours, compiled=True),
    "ours, softmax: catalogue": partial(ours, softmax="catalogue"),
    **{f"ours, {name}": partial(ours, away=name) for name in AWAY},
    "TRL": theirs,
}


def size(name: str, micro: int, systems: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """One size, one system after the other; who runs out of memory has no figures."""
    found: dict[str, dict[str, float]] = {}
    for who in systems:
        try:
            found[who] = WHO[who](shape(name), device(), ROWS, TOKENS, micro)
            print(f"{name} micro {micro}: {who} {found[who]}", flush=True)
        except torch.OutOfMemoryError:
            print(f"{name} micro {micro}: {who} ran out of memory", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return found


def run(results: Any) -> None:
    """All sizes, then what `offload` and `compile` change; needs a CUDA GPU."""
    if device().type != "cuda":
        raise SystemExit("--only gpu: this machine has no CUDA GPU")
    for micro, name in product(MICRO, SHAPES):
        results.part("gpu", f"{name} micro {micro}", partial(size, name, micro, ("ours", "TRL")))
    for name, micro in product(reversed(SHAPES), MICRO[1:]):
        ways = ("ours", "ours, offload", "ours, offload by TRL")
        results.part("measures", f"{name} micro {micro} offload", partial(size, name, micro, ways))
    small = LlamaConfig(**SMALL, attn_implementation="sdpa")
    for rows, tokens in ((64, 224), (16, 160)):
        key = f"SmolLM2-135M, {rows} rows of {tokens} tokens"
        results.part("compile", key, partial(compiled, small, device(), rows, tokens, 6))
        gc.collect()
        torch.cuda.empty_cache()
    ways = ("ours", "ours, softmax: catalogue")
    results.part("measures", "Llama-3.1-8B micro 4 catalogue", partial(size, "Llama-3.1-8B", 4, ways))
    name, micro = "Llama-3.2-1B", 4  # the one of them that waits for its host most
    both = ("ours", "ours, compiled layers")
    results.part("measures", f"{name} micro {micro} compiled", partial(size, name, micro, both))
