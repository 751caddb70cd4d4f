"""The CUDA part of benchmarks/recommend.py: users a second by strategy and by the tokens of a batch, random weights.

Prompts of 300 tokens, items of 8, a catalogue of 2,000. `of_rate` is the share of the device's own rate of large bf16
products that the decoder's linear layers reach, padding counted: 55% is what a whole forward can be expected to.
"""

import gc
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from train_gpu import SMALL, shape
from transformers import LlamaConfig, LlamaForCausalLM

from calrec_lite.decode.beam import beam_search
from calrec_lite.decode.exact import item_logprobs
from calrec_lite.decode.prompt_tree import PromptTree, padded
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.towers import Towers
from calrec_lite.model.memory import peak_bytes
from calrec_lite.text.token_lists import TokenLists
from calrec_lite.text.trie import Trie
from calrec_lite.training.mfu import matmul_rate

PROMPT, ITEM, ITEMS = 300, 8, 2000
BEAMS, K, RERANK = 20, 10, 100
BATCH_TOKENS = (4096, 16384, 65536)
SECONDS = 4.0  # of one figure
BASES = {
    "SmolLM2-135M": LlamaConfig(**SMALL, attn_implementation="sdpa"),
    "Llama-3.2-1B": shape("Llama-3.2-1B"),
}
MakeLists = Callable[[list[np.ndarray]], Any]


def random_catalogue(vocabulary: int) -> EncodedCatalogue:
    """Items of random ids, whose first tokens are as few as those of titles."""
    draw = np.random.default_rng(0)
    first = draw.integers(10, min(vocabulary, 300), ITEMS)
    tokens = [np.array([a, *draw.integers(10, min(vocabulary, 3000), ITEM - 2), 5]) for a in first]
    trie, names = Trie.build(tokens), [str(i) for i in range(ITEMS)]
    bias = np.zeros(len(trie.token), np.float32)
    counts = np.ones(ITEMS, np.int64)
    return EncodedCatalogue("random", names, names, TokenLists.of(tokens), trie, bias, counts, 0.2)


def strategies(towers: Towers, catalogue: EncodedCatalogue) -> dict[str, MakeLists]:
    """Lists for a batch of prompts, as `recommend.strategies` makes them."""
    device, trie = towers.head.device, catalogue.trie
    paths = TrieTensors.of(catalogue, "catalogue").to(device)
    vectors = nn.functional.normalize(torch.randn(ITEMS, towers.head.shape[1], device=device))

    def beam(prompts: list[np.ndarray]) -> Any:
        allowed = np.ones((len(prompts), ITEMS), np.bool_)
        return beam_search(PromptTree(towers, prompts, 0), trie, paths, BEAMS, K, allowed)

    def dense(prompts: list[np.ndarray]) -> Any:
        ids, lengths = (t.to(device) for t in padded(prompts, 0))
        return (towers.vectors(ids, lengths) @ vectors.T).topk(K).indices.cpu()

    def rerank(prompts: list[np.ndarray]) -> Any:
        tree = PromptTree(towers, prompts, 0)
        return item_logprobs(tree, trie, paths, list((tree.users @ vectors.T).topk(RERANK).indices.cpu().numpy()))

    return {"dense": dense, "beam": beam, "rerank": rerank}


@torch.no_grad()
def speed(towers: Towers, make: MakeLists, users: int, rate: float, seconds: float = SECONDS) -> dict[str, float]:
    """Batches of so many users, for so long."""
    draw = np.random.default_rng(1)
    device, ids = towers.head.device, 0
    prompts = list(draw.integers(10, min(3000, len(towers.head)), (users, PROMPT)))

    def count(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal ids
        ids += kwargs["input_ids"].numel()

    make(prompts)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    hook = towers.decoder.register_forward_pre_hook(count, with_kwargs=True)
    start, batches = time.perf_counter(), 0
    while not batches or time.perf_counter() - start < seconds:
        make(prompts)  # its result is read back, so the device is done
        batches += 1
    took = time.perf_counter() - start
    hook.remove()
    weights = sum(m.weight.numel() for m in towers.decoder.modules() if isinstance(m, nn.Linear))
    return {
        "users_per_second": users * batches / took,
        "users": users,
        "of_rate": 2 * weights * ids / took / rate,
        "peak_bytes": peak_bytes(device),
    }


def measured(config: LlamaConfig, where: torch.device, seconds: float = SECONDS) -> dict[str, dict[str, float]]:
    """Every strategy at every size of a batch; who runs out of memory has no figures."""
    torch.manual_seed(0)
    with torch.device(where):
        towers = Towers(LlamaForCausalLM(config).to(torch.bfloat16).eval())
    rate, found = matmul_rate(where, torch.bfloat16), {}
    ways = strategies(towers, random_catalogue(config.vocab_size))
    for name, tokens in product(ways, BATCH_TOKENS):
        try:
            found[f"{name} {tokens}"] = speed(towers, ways[name], max(1, tokens // PROMPT), rate, seconds)
            print(name, tokens, found[f"{name} {tokens}"], flush=True)
        except torch.OutOfMemoryError:
            print(name, tokens, "ran out of memory", flush=True)
        gc.collect()
    return found
