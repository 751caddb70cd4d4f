"""How many users share a batch where memory decides, and that what they then take is there."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import batching
from calrec_lite.recommend.batching import batch_tokens
from calrec_lite.recommend.strategies import Strategies, Users
from calrec_lite.text.encoding import Encoder

LONGEST, ITEM = 300, 8.0


def test_memory_decides_between_one_prompt_and_the_most_of_use(towers: Towers, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for free in (1 << 10, 1 << 24, 1 << 25, 1 << 45):
        monkeypatch.setattr(batching, "unused_bytes", lambda device, free=free: free)
        found.append(batch_tokens(Recommend(strategy="beam"), towers, LONGEST, ITEM))
    assert found[0] == LONGEST
    assert LONGEST < found[1] < found[2] < found[3] == 4096
    assert found[1] % LONGEST == found[2] % LONGEST == 0
    assert batch_tokens(Recommend(batch_tokens=640), towers, LONGEST, ITEM) == 640
    assert batch_tokens(Recommend(strategy="fast"), None, LONGEST, ITEM) == 4096


@pytest.mark.parametrize(
    "options", [{"strategy": "beam", "beams": 20}, {"strategy": "rerank", "rerank": 30}, {"strategy": "dense"}], ids=str
)
def test_a_batch_takes_no_more_than_was_counted(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, options: dict
) -> None:
    chosen = Recommend(**options, exclude_seen=False)
    made = Strategies(towers, encoder, catalogue, chosen, 0)
    histories = [np.arange(u, u + 9) % len(catalogue) for u in range(8)]
    prompts = [encoder.prompt([catalogue.tokens[i] for i in h]) for h in histories]
    users = Users(prompts, [[catalogue.texts[i] for i in h] for h in histories], histories)
    allowed = np.ones((8, len(catalogue)), np.bool_)
    made.rank(users, allowed, 5)  # item vectors and trie are there now
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made.rank(users, allowed, 5)
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = torch.tensor([event.nbytes() for event in events if event.name() == "[memory]"]).cumsum(0)
    counted = 8 * batching._user_bytes(chosen, towers, max(map(len, prompts)), float(catalogue.tokens.lengths.mean()))
    assert counted / 8 < int(held.max()) < counted / batching.SHARE
