"""How many prompt tokens are decoded together where the recipe leaves it open (`recommend.batch_tokens: auto`)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from calrec_lite.decode.exact import BLOCK
from calrec_lite.model.memory import cache_bytes, layer_bytes, unused_bytes
from calrec_lite.recipe import Recommend
from calrec_lite.text.encoding import Tokens

if TYPE_CHECKING:  # it loads PEFT, which takes seconds
    from calrec_lite.method.towers import Towers

MIN_PROMPT_TOKENS = 64  # a shorter prompt counts as so many: its continuations take memory however short it is
SHARE = 0.5  # of the free memory; the rest is for buffers and other programs
MOST = {"cpu": 4096, "cuda": 1 << 16}  # beyond these nothing is gained
MASK_BYTES = 12  # of a pair of continuation and key: who sees whom, as truth values and as numbers


def batch_tokens(options: Recommend, towers: "Towers | None", longest: int, item_tokens: float) -> int:
    """As the recipe says, or as many as half of the memory that is free holds, at least one prompt.

    Args:
        towers: None where another engine has the model, or lists need none.
        longest: tokens of the longest prompt. item_tokens: of an item, on average.
    """
    if options.batch_tokens != "auto":
        return options.batch_tokens
    if towers is None:
        return MOST["cpu"]
    device = towers.head.device
    users = int(SHARE * unused_bytes(device)) // _user_bytes(options, towers, longest, item_tokens)
    return max(longest, min(users * longest, MOST[device.type]))


def _user_bytes(options: Recommend, towers: "Towers", longest: int, item_tokens: float) -> int:
    """Of a user with the longest prompt: keys and values, one layer's states, and the mask of all continuations."""
    items = {
        "beam": max(options.beams, options.k),
        "sample": options.samples,
        "rerank": min(BLOCK, options.rerank * (2 if options.transitions else 1)),
        "fused": min(BLOCK, options.rerank),
    }.get(options.strategy, 0)
    added = round(items * item_tokens)
    tokens = longest + added
    layer = layer_bytes(towers.decoder.config, towers.head.element_size(), _widest(towers))
    return tokens * (cache_bytes(towers.decoder) + layer) + MASK_BYTES * added * tokens


def _widest(towers: "Towers") -> int:
    """Inputs of the widest linear layer: of an MLP's second one, whatever a config calls it."""
    layers = (m for m in towers.decoder.modules() if isinstance(m, torch.nn.Linear))
    return max((layer.in_features for layer in layers), default=0)


def batches(prompts: Sequence[Tokens], tokens: int) -> Iterator[list[int]]:
    """Users of similar prompt length together, as many as fit `tokens`; the longest first."""
    order = sorted(range(len(prompts)), key=lambda u: (-len(prompts[u]), u))
    start = 0
    while start < len(order):
        size = max(1, tokens // max(MIN_PROMPT_TOKENS, len(prompts[order[start]])))
        yield order[start : start + size]
        start += size
