"""Items drawn through vLLM's interfaces, judged by our own probabilities; and the clear word where it is of no use."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from calrec_lite.cli import group
from calrec_lite.data.domain import Domain
from calrec_lite.decode.steering import Steering, item_of
from calrec_lite.errors import InputError
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.towers import Towers
from calrec_lite.package.layout import fingerprint
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.vllm import Drawing, prompt_seed, vllm_recommender
from calrec_lite.recommend.vllm_rows import BatchRows, SlotRows, asked_history
from calrec_lite.recommend.vllm_vectors import PooledVectors
from calrec_lite.text.encoding import Encoder
from tests.conftest import make_domain
from tests.recommend.vllm_driver import Judge, Request, Runner, V1Runner, V2Runner

HISTORIES = [[0, 1, 2], [7, 8]]
SLOTS = 7
DRAWS = 400
NEVER = 1e-6  # of two users, two catalogues and two runners: a right sampler fails once in 100,000 seeds


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Towers:
    return Towers(AutoModelForCausalLM.from_pretrained(tiny_folder).eval())


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's two plain classes: it is not installed where tests run."""
    module = ModuleType("vllm")
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    module.TokensPrompt = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def runner_of(kind: str, towers: Towers, catalogue: EncodedCatalogue, end: int, judge: Judge) -> Runner:
    steering = Steering(catalogue, end, SLOTS, "cpu")
    if kind == "V2":
        return V2Runner(lambda states: SlotRows(steering, states), towers, SLOTS, 1, judge)
    return V1Runner(BatchRows(steering), towers, SLOTS, 1, judge)


def judge_of(ours: Recommender, encoder: Encoder, catalogue: EncodedCatalogue) -> tuple[np.ndarray, Judge, set]:
    """(U, N) our own log P of all items, a judge of each row by them, and the nodes of the trie that it saw."""
    known = [np.array(history) for history in HISTORIES]
    prompts = [encoder.prompt([catalogue.tokens[i] for i in history]) for history in HISTORIES]
    logp = ours.strategies.logprobs(prompts, known)
    plain, root = [t.tolist() for t in catalogue.tokens], len(catalogue.trie.root)
    seen: set[tuple[int, tuple[int, ...]]] = set()

    def judge(request: Request, row: torch.Tensor) -> None:
        user = HISTORIES.index(request.params.extra_args["catalogue"])
        prefix = plain[0][:root] + request.output
        below = [i for i, tokens in enumerate(plain) if tokens[: len(prefix)] == prefix]
        expected: dict[int, float] = {}
        for i in below:
            token = plain[i][len(prefix)] if len(below) > 1 else encoder.end
            expected[token] = expected.get(token, 0.0) + float(np.exp(logp[user, i]))
        allowed = row.isfinite().nonzero().squeeze(1).tolist()
        assert allowed == sorted(expected)
        whole = sum(expected.values())
        np.testing.assert_allclose(row[allowed].exp(), [expected[t] / whole for t in allowed], rtol=1e-4)
        seen.add((user, tuple(request.output)))

    return logp, judge, seen


@pytest.mark.parametrize("kind", ["V2", "V1"])
@pytest.mark.parametrize("which", ["catalogue", "mixed"])
def test_what_is_drawn_are_items_of_our_own_distribution(
    kind: str,
    which: str,
    request: pytest.FixtureRequest,
    tiny: Towers,
    domain: Domain,
    encoder: Encoder,
    stub: None,
) -> None:
    catalogue: EncodedCatalogue = request.getfixturevalue(which)
    ids, options = domain.catalogue.ids, Recommend(strategy="sample", samples=DRAWS, temperature=1.0)
    ours = Recommender(tiny, encoder, catalogue, ids, options)
    logp, judge, seen = judge_of(ours, encoder, catalogue)
    runner = runner_of(kind, tiny, catalogue, encoder.end, judge)
    draw = Drawing(runner, options, 0, encoder, catalogue.trie, room=512)
    known = [np.array(history) for history in HISTORIES]
    prompts = [encoder.prompt([catalogue.tokens[i] for i in history]) for history in HISTORIES]
    plain = SimpleNamespace(n=9, extra_args=None, temperature=1.0, max_tokens=5, stop_token_ids=[])
    among = [{"prompt_token_ids": p.tolist()} for p in prompts]
    asked = runner.generate
    runner.generate = lambda p, own, use_tqdm: asked([*p, *among], [*own, plain, plain], use_tqdm)[: len(p)]  # type: ignore
    for row, draws in zip(logp, draw(prompts, known), strict=True):
        np.testing.assert_allclose(draws.logprobs, row[draws.items], rtol=1e-4)
        expected = DRAWS * np.exp(row)
        rare = expected < 5  # taken together, as the test wants it
        counts = np.bincount(draws.items, minlength=len(row))
        found, wanted = (np.append(v[~rare], v[rare].sum()) for v in (counts, expected))
        assert len(found) > 5
        assert chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > NEVER
    forks = {key for key in seen if key[1]}
    assert len(forks) > 30  # of both users, beyond the first


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_lists_are_the_drawn_items_by_their_probability_and_then_the_most_popular_ones(
    temperature: float, tiny: Towers, domain: Domain, encoder: Encoder, catalogue: EncodedCatalogue, stub: None
) -> None:
    ids, options = domain.catalogue.ids, Recommend(strategy="sample", samples=6, temperature=temperature)
    runner = runner_of("V2", tiny, catalogue, encoder.end, lambda request, row: None)
    draw = Drawing(runner, options, 3, encoder, catalogue.trie, room=512)
    made = Recommender(None, encoder, catalogue, ids, options, draw=draw)
    histories = [[ids[i] for i in history] for history in HISTORIES]
    for history, items, own in zip(histories, made.recommend(histories, 10, deny=[ids[20]]), HISTORIES, strict=True):
        assert len({i.item for i in items}) == 10
        assert not {*history, ids[20]} & {i.item for i in items}
        drawn = [i for i in items if np.isfinite(i.score)]
        ours = Recommender(tiny, encoder, catalogue, ids, options)
        prompt = encoder.prompt([catalogue.tokens[i] for i in own])
        logp = ours.strategies.logprobs([prompt], [np.array(own)])[0]
        assert [i.score for i in drawn] == pytest.approx([logp[ids.index(i.item)] for i in drawn], rel=1e-4)
        assert drawn == sorted(drawn, key=lambda i: -i.score)
        assert all(f"log-probability {i.score:.2f}, drawn " in i.why for i in drawn)
        counts = [catalogue.counts[ids.index(i.item)] for i in items[len(drawn) :]]
        assert counts == sorted(counts, reverse=True)
        assert {i.why for i in items[len(drawn) :]} == {"fill"}


def test_what_vllm_is_asked(tiny: Towers, encoder: Encoder, catalogue: EncodedCatalogue, stub: None) -> None:
    asked: list[tuple[list[int], SimpleNamespace]] = []
    item = catalogue.tokens[5].tolist()[len(catalogue.trie.root) :]

    def generate(prompts: list[Any], params: list[SimpleNamespace], use_tqdm: bool) -> list[SimpleNamespace]:
        asked.extend((p["prompt_token_ids"], own) for p, own in zip(prompts, params, strict=True))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=item, cumulative_logprob=-3.0)]) for _ in prompts]

    options = Recommend(strategy="sample", samples=6, temperature=0.7)
    prompt = encoder.prompt([catalogue.tokens[4]])
    draw = Drawing(SimpleNamespace(generate=generate), options, 3, encoder, catalogue.trie, room=len(prompt) + 99)
    (draws,) = draw([prompt], [np.array([4])])
    assert (draws.items.tolist(), draws.logprobs.tolist()) == ([5], [pytest.approx(-2.1)])
    ((ids, own),) = asked
    assert ids == [*prompt.tolist(), *catalogue.trie.root.tolist()]
    assert (own.n, own.temperature, own.logprobs, own.seed) == (6, 0.7, 0, prompt_seed(3, prompt))
    assert (own.stop_token_ids, own.ignore_eos, own.detokenize) == ([encoder.end], True, False)
    assert own.extra_args == {"catalogue": [4]}
    assert own.max_tokens == draw.item_tokens <= catalogue.tokens.longest + 1
    draw.room = len(prompt) + len(catalogue.trie.root) + draw.item_tokens - 1
    with pytest.raises(InputError, match=rf"a history of \d+ tokens; .* room for {draw.room}"):
        draw([prompt], [np.array([4])])


class Pooling:
    """`vllm.LLM` as a pooling runner over a real model: the mean of all states, the start token's too."""

    def __init__(self, model: str, **options: Any) -> None:
        assert (options["runner"], options["convert"], options["load_format"]) == ("pooling", "embed", "safetensors")
        assert vars(options["pooler_config"]) == {"seq_pooling_type": "MEAN", "use_activation": False}
        dtype = getattr(torch, options["dtype"])
        self.towers = Towers(AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval())
        self.room = options["max_model_len"]

    @torch.no_grad()
    def embed(self, prompts: list[dict[str, list[int]]], use_tqdm: bool) -> list[SimpleNamespace]:
        texts = [torch.tensor([prompt["prompt_token_ids"]]) for prompt in prompts]
        assert max(text.shape[1] for text in texts) <= self.room
        means = [self.towers.states(text)[0].float().mean(0) for text in texts]
        return [SimpleNamespace(outputs=SimpleNamespace(embedding=mean.tolist())) for mean in means]


def test_pooled_vectors_are_ours_as_the_start_token_is_taken_out(
    package: Path, tmp_path: Path, stub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm

    vllm.LLM, vllm.config = Pooling, SimpleNamespace(PoolerConfig=SimpleNamespace)
    ours = Recommender.from_pretrained(package, strategy="dense", dtype="float32")
    pooled, tokens = PooledVectors(package, torch.float32), list(ours.catalogue.tokens)
    vectors = ours.strategies.item_vectors.vectors.numpy()
    np.testing.assert_allclose(pooled.items(tokens), vectors, atol=1e-5)
    prompts = [ours.encoder.prompt([tokens[i] for i in history]) for history in [*HISTORIES, []]]
    np.testing.assert_allclose(pooled.prompts(prompts), ours.strategies.user_vectors(prompts), atol=1e-5)
    means = pooled._means([np.concatenate([pooled.start, t]) for t in tokens])
    plain = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(plain - vectors).max() > 0.01  # which is why
    file = tmp_path / "items.parquet"
    command = ["index", str(package), "--to", str(file), "--engine", "vllm"]
    assert CliRunner().invoke(group, command, standalone_mode=False).output.startswith("30 new")
    stored = np.array(pq.read_table(file)["vector"].to_pylist())
    assert (stored * vectors).sum(1).min() > 0.999  # in the number type of this machine


def test_every_item_is_found_by_its_tokens_and_nothing_else_is(catalogue: EncodedCatalogue, encoder: Encoder) -> None:
    trie = catalogue.trie
    for item, tokens in enumerate(catalogue.tokens):
        own = tokens.tolist()[len(trie.root) :]
        assert item_of(trie, own) == item
        last = trie.path[trie.path_ptr[item + 1] - 1]
        certain = int(trie.depth[trie.owner[last]]) - len(trie.root) + 1
        assert item_of(trie, [*own[:certain], encoder.end]) == item
        with pytest.raises(ValueError, match="no item of the catalogue begins with"):
            item_of(trie, [*own[: certain - 1], encoder.end])


def test_a_catalogue_of_one_item_leaves_nothing_to_draw(encoder: Encoder) -> None:
    alone = make_domain(items=1, users=2)
    with pytest.raises(ValueError, match="nothing to draw"):
        Steering(encode_catalogue("one", alone.catalogue, encoder), encoder.end, 1, "cpu")


@pytest.mark.parametrize("wrong", ["3", [-1], [1.5], [True], {"a": 1}])
def test_a_request_that_does_not_say_its_history_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"indices of the catalogue, such as \[3, 17\] or \[\]"):
        asked_history(SimpleNamespace(extra_args={"catalogue": wrong}))
    assert asked_history(SimpleNamespace(extra_args={"other": 1})) is None
    assert asked_history(SimpleNamespace(extra_args={"catalogue": []})) is not None


def test_seeds_of_neighbours_do_not_meet() -> None:
    seeds = np.array([prompt_seed(0, np.array([1, token])) for token in range(2000)])
    assert np.diff(np.sort(seeds)).min() > 0
    assert not set(seeds[:50] + 1) & set(seeds)  # vLLM adds the text's number
    assert prompt_seed(0, np.array([1])) != prompt_seed(1, np.array([0]))
    assert prompt_seed(0, np.array([7, 8])) == prompt_seed(0, np.array([7, 8]))


def test_other_strategies_are_refused(package: Path) -> None:
    with pytest.raises(InputError, match="lists by `beam`; add --strategy sample"):
        vllm_recommender(package)
    with pytest.raises(InputError, match="--strategy fly: write one of fused, fast, beam, "):
        vllm_recommender(package, "fly")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_absent_vllm_is_one_clear_line(package: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be imported .*pip install 'calrec-lite\[vllm\]'"):
        vllm_recommender(package, "sample")


def test_a_model_written_anew_has_another_fingerprint(package: Path) -> None:
    before = fingerprint(package)
    (package / "vectors.safetensors").write_bytes(b"what is derived from the model does not count")
    assert fingerprint(package) == before
    weights = package / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert fingerprint(package) != before
