"""Beam search over one shared prompt cache against plain forwards of whole texts, and against transformers' own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from calrec_lite.data.domain import Catalogue
from calrec_lite.decode import beam
from calrec_lite.decode import exact as likelihood
from calrec_lite.decode import trie_tensors as paths_module
from calrec_lite.decode.beam import STEPS, beam_search
from calrec_lite.decode.exact import catalogue_logprobs, item_logprobs
from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.towers import Towers
from calrec_lite.text.encoding import Encoder
from calrec_lite.text.trie import Trie
from tests.decode.conftest import Exact
from tests.method.test_step import Waits


def test_wide_beams_find_the_true_order_with_exact_scores(
    tree: PromptTree,
    prompts: list,
    catalogue: EncodedCatalogue,
    paths: TrieTensors,
    exact: Exact,
    everything: np.ndarray,
) -> None:
    n = len(catalogue)
    for prompt, ranked in zip(prompts, beam_search(tree, catalogue.trie, paths, n, n, everything)):
        scores = exact(prompt, paths.score)
        assert paths.score == "vocabulary" or np.exp(scores).sum() == pytest.approx(1, abs=1e-4)
        assert sorted(ranked.items.tolist()) == list(range(n))
        np.testing.assert_allclose(ranked.scores, scores[ranked.items], atol=4e-4)
        assert (np.diff(ranked.scores) <= 1e-9).all()


def test_every_item_is_scored_exactly_in_one_forward(
    tree: PromptTree, prompts: list, catalogue: EncodedCatalogue, paths: TrieTensors, exact: Exact
) -> None:
    wanted = [exact(prompt, paths.score) for prompt in prompts]
    np.testing.assert_allclose(catalogue_logprobs(tree, catalogue.trie, paths), wanted, atol=4e-4)


@pytest.mark.parametrize(("block", "entries"), [(256, 1 << 24), (2, 40)], ids=["at once", "in parts"])
def test_some_items_are_scored_as_among_all(
    towers: Towers,
    prompts: list,
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    paths: TrieTensors,
    exact: Exact,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    entries: int,
) -> None:
    monkeypatch.setattr(likelihood, "BLOCK", block)
    monkeypatch.setattr(paths_module, "HEAD_ENTRIES", entries)
    some = [np.array([3, 17, 4]), np.array([29]), np.empty(0, np.int64), np.array([0, 1])]
    found = item_logprobs(PromptTree(towers, prompts, encoder.pad), catalogue.trie, paths, some)
    for prompt, items, scores in zip(prompts, some, found):
        np.testing.assert_allclose(scores, exact(prompt, paths.score)[items], atol=4e-4)


@pytest.mark.parametrize("steps", [100, STEPS])  # until nothing is left, and with an end
def test_few_beams_find_the_true_best_among_what_is_allowed(
    towers: Towers,
    prompts: list,
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    everything: np.ndarray,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beam, "STEPS", steps)
    paths = TrieTensors.of(catalogue, "catalogue")
    scores = catalogue_logprobs(PromptTree(towers, prompts, encoder.pad), catalogue.trie, paths)
    allowed = everything.copy()
    allowed[0, np.argsort(-scores[0])[:5]] = False  # the best are seen
    allowed[1] = False
    allowed[1, [2, 11, 28]] = True  # a set of candidates smaller than the list
    allowed[2] = False
    found = beam_search(
        PromptTree(towers, prompts, encoder.pad), catalogue.trie, paths, 8 if steps > STEPS else 20, 8, allowed
    )
    for u, ranked in enumerate(found):
        wanted = [i for i in np.argsort(-scores[u]) if allowed[u, i]][:8]
        assert ranked.items.tolist() == wanted
        np.testing.assert_allclose(ranked.scores, scores[u, wanted], atol=2e-4)


def test_lists_do_not_depend_on_who_shares_the_batch(
    towers: Towers,
    prompts: list,
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    paths: TrieTensors,
    everything: np.ndarray,
) -> None:
    together = beam_search(PromptTree(towers, prompts, encoder.pad), catalogue.trie, paths, 10, 10, everything)
    for prompt, ranked in zip(prompts, together):
        alone = beam_search(PromptTree(towers, [prompt], encoder.pad), catalogue.trie, paths, 10, 10, everything[:1])[0]
        assert alone.items.tolist() == ranked.items.tolist()
        np.testing.assert_allclose(alone.scores, ranked.scores, atol=2e-4)


class AllWaits(Waits):
    """Those by masks, by counts and by lengths too; and how often the loop goes round."""

    NAMES = (*Waits.NAMES, "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        masks = [i for i in args[1] if i is not None] if name in ("index", "index_put_", "_index_put_impl_") else []
        lengths = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if lengths or any(i.dtype is torch.bool for i in masks):
            self.found.append(name)
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_the_host_waits_as_often_for_many_users_as_for_few(
    towers: Towers, prompts: list, encoder: Encoder, catalogue: EncodedCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users who are alike go as many rounds, however many there are; what has to be known is read once a round."""
    found, rounds = [], []
    expand = beam._Search._user_has_unfed
    monkeypatch.setattr(beam._Search, "_user_has_unfed", lambda self, unfed: rounds.append(1) or expand(self, unfed))
    for times in (1, 5):
        users = prompts * times
        with torch.no_grad():
            tree = PromptTree(towers, users, encoder.pad)
        everything = np.ones((len(users), len(catalogue)), np.bool_)
        with AllWaits() as waits:
            beam_search(tree, catalogue.trie, TrieTensors.of(catalogue, "catalogue"), 10, 5, everything)
        found.append(len(waits.found))
    assert found[0] == found[1]
    assert found[0] <= 12 * len(rounds) // 2, waits.found


def test_a_catalogue_of_one_item(tree: PromptTree, catalogue: EncodedCatalogue, everything: np.ndarray) -> None:
    trie = Trie.build(catalogue.tokens[:1])
    one = replace(catalogue, tokens=catalogue.tokens[:1], trie=trie, bias=np.empty(0, np.float32))
    allowed = everything[:, :1].copy()
    allowed[1] = False
    found = beam_search(tree, trie, TrieTensors.of(one, "catalogue"), 5, 5, allowed)
    assert [f.items.tolist() for f in found] == [[0], [], [0], [0]]
    assert found[0].scores.tolist() == [0.0]


class Prior(LogitsProcessor):
    """The scale and the popularity prior for transformers' search: each child's bias by the tokens before it."""

    def __init__(self, bias: dict[tuple[int, ...], dict[int, float]], logit_scale: float, start: int) -> None:
        self.bias, self.logit_scale, self.start = bias, logit_scale, start

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, own in zip(scores, ids[:, self.start :].tolist()):
            for token, bias in self.bias.get(tuple(own), {}).items():
                row[token] = self.logit_scale * row[token] + bias
        return scores


def deep(encoder: Encoder) -> EncodedCatalogue:
    """Items of many lengths that part late, so that some end where others still have to choose."""
    random, names = np.random.default_rng(3), set()
    while len(names) < 80:
        names.add(" ".join(random.choice(["red", "blue", "tea"], random.integers(1, 9))))
    fields = [{"Title": name} for name in sorted(names)]
    items = Catalogue([str(i) for i in range(80)], fields, {})
    return encode_catalogue("deep", items, encoder, np.ones(80, np.int64), prior=1.0, logit_scale=0.5)


@pytest.mark.parametrize(
    ("late", "beams", "k", "share"),
    [
        (False, 3, 3, "all"),
        (False, 6, 6, "all"),
        (False, 12, 12, "all"),
        (False, 6, 2, "all"),
        (False, 12, 5, "all"),
        (True, 7, 7, "all"),
        (False, 12, 5, "half"),
        (True, 7, 3, "half"),
    ],
)
def test_strict_search_gives_the_lists_of_transformers(
    causal: PreTrainedModel,
    towers: Towers,
    prompts: list,
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    late: bool,
    beams: int,
    k: int,
    share: str,
) -> None:
    catalogue = deep(encoder) if late else catalogue
    allowed = (np.arange(len(catalogue)) % 2 > 0) | (share == "all")  # the others take room in the beam all the same
    trie, end = catalogue.trie, encoder.end
    plain = [tuple(t.tolist()) for t in catalogue.tokens]
    children: dict[tuple[int, ...], dict[int, float]] = {}
    for item, tokens in enumerate(plain):
        on_path = {
            int(trie.depth[trie.owner[e]]): float(catalogue.bias[e])
            for e in trie.path[slice(*trie.path_ptr[item : item + 2])]
        }
        for d, token in enumerate(tokens):
            children.setdefault(tokens[:d], {})[token] = on_path.get(d, 0.0)
        children[tokens] = {end: 0.0}
    paths = TrieTensors.of(catalogue, "catalogue")
    everyone = np.tile(allowed, (len(prompts), 1))
    found = beam_search(PromptTree(towers, prompts, encoder.pad), trie, paths, beams, k, everyone, strict=True)
    for prompt, ranked in zip(prompts, found):
        start = len(prompt)
        wanted = causal.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, start, dtype=torch.long),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=max(map(len, plain)) + 1,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            renormalize_logits=True,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
            prefix_allowed_tokens_fn=lambda _, ids, start=start: list(
                children.get(tuple(ids[start:].tolist()), {end: 0})
            ),
            logits_processor=LogitsProcessorList([Prior(children, catalogue.logit_scale, start)]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        texts = [tuple(t for t in own[start:].tolist() if t != end) for own in wanted.sequences]
        scored = zip((plain.index(t) for t in texts), wanted.sequences_scores.tolist())
        items, scores = zip(*[(item, score) for item, score in scored if allowed[item]][:k])
        assert list(items) == ranked.items.tolist()
        np.testing.assert_allclose(scores, ranked.scores, atol=2e-4)


@pytest.mark.parametrize("seed", range(8))
def test_every_list_is_as_long_as_it_can_be(
    towers: Towers,
    prompts: list,
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    paths: TrieTensors,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beam, "STEPS", seed % 3)
    random = np.random.default_rng(seed)
    k = int(random.integers(1, 12))
    allowed = random.random((len(prompts), len(catalogue))) < random.choice([0.05, 0.3, 0.9])
    found = beam_search(PromptTree(towers, prompts, encoder.pad), catalogue.trie, paths, k, k, allowed)
    for own, ranked in zip(allowed, found):
        assert len(set(ranked.items.tolist())) == len(ranked.items) == min(k, own.sum())
        assert own[ranked.items].all()
