"""The four strategies through `Recommender`: real, distinct items, exact filters, vectors that are kept, cold items."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from calrec_lite.data.domain import Catalogue
from calrec_lite.errors import InputError
from calrec_lite.method.batch import item_chunk
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.draws import Draws
from calrec_lite.recommend.vectors import ItemVectors, encode_items, model_fingerprint
from calrec_lite.text.encoding import Encoder, Tokens
from tests.conftest import make_domain
from tests.decode.conftest import Exact, cosines

NOTHING = Draws(np.empty(0, np.int64), np.empty(0))

STRATEGIES = ("beam", "sample", "dense", "rerank")
HISTORIES = [["id0", "id1", "id2"], ["id5"], ["id7", "something the shop never sold", "id9"], []]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path))


def recommender(towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, **options: object) -> Recommender:
    ids = [f"id{i}" for i in range(len(catalogue))]
    return Recommender(
        towers, encoder, catalogue, ids, Recommend(**{"strategy": "beam", "samples": 8, "rerank": 12, **options})
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lists_are_of_real_items_and_every_filter_is_exact(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, strategy: str
) -> None:
    made = recommender(towers, encoder, catalogue, strategy=strategy)
    every = {f"id{i}" for i in range(len(catalogue))}
    plain = [[r.item for r in own] for own in made.recommend(HISTORIES, 10)]
    assert all(len(set(own)) == 10 and set(own) <= every for own in plain)
    assert all(not set(own) & set(history) for own, history in zip(plain, HISTORIES))
    denied = plain[3][:3]
    without = [[r.item for r in own] for own in made.recommend(HISTORIES, 10, deny=denied)]
    assert all(len(own) == 10 and not set(own) & set(denied) for own in without)
    few = ["id3", "id12", "id20", "id21"]
    allowed = [[r.item for r in own] for own in made.recommend(HISTORIES, 10, allow=[*few, "id5"], deny=["id21"])]
    assert [set(own) for own in allowed] == [{"id3", "id5", "id12", "id20"}, {"id3", "id12", "id20"}] + [
        {"id3", "id5", "id12", "id20"}
    ] * 2
    own = made.recommend(HISTORIES, 3, candidates=[few, None, ["id7", "id8"], ["id29"]])
    assert [len(o) for o in own] == [3, 3, 1, 1]
    assert {r.item for r in own[0]} <= set(few)
    assert [r.item for r in own[1]] == plain[1][:3]
    assert own[2][0].item == "id8"


@pytest.mark.parametrize("strategy", ["beam", "dense", "rerank"])
def test_candidates_keep_the_order_they_have_among_all(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, strategy: str
) -> None:
    made = recommender(towers, encoder, catalogue, strategy=strategy, rerank=30, beams=30)
    whole = made.recommend(HISTORIES, 30)
    some = {f"id{i}" for i in range(0, 30, 4)}
    limited = made.recommend(HISTORIES, 30, candidates=[sorted(some)] * len(HISTORIES))
    for all_, own in zip(whole, limited):
        wanted = [(r.item, r.score) for r in all_ if r.item in some]
        assert [r.item for r in own] == [item for item, _ in wanted]
        np.testing.assert_allclose([r.score for r in own], [score for _, score in wanted], atol=3e-4)


def test_unknown_names_and_missing_candidates_are_named(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    made = recommender(towers, encoder, catalogue)
    with pytest.raises(InputError, match="deny: the catalogue has no title or id 'gone'"):
        made.recommend([["id1"]], deny=["gone"])
    with pytest.raises(InputError, match="1 sets for 2 histories"):
        made.recommend([["id1"], ["id2"]], candidates=[["id3"]])


def test_a_tokenizer_of_another_model_is_refused(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers, "output", torch.nn.Linear(1, encoder.end))
    with pytest.raises(InputError, match=r"the tokenizer writes token \d+, and the model knows [\d,]+ tokens"):
        recommender(towers, encoder, catalogue)


def test_no_list_and_no_histories_are_named(towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue) -> None:
    made = recommender(towers, encoder, catalogue, k=4)
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k: {k}; ask for 1 item or more"):
            made.recommend([["id1"]], k)
    assert len(made.recommend([["id1"]])[0]) == 4
    for histories in (["Toy Story"], "Toy Story"):
        with pytest.raises(InputError, match=r"histories: 'Toy Story' is one text.*write \['Toy Story'\]"):
            made.recommend(histories)
    for what in ("allow", "deny"):
        with pytest.raises(InputError, match=rf"{what}: 'id1' is one text.*write \['id1'\]"):
            made.recommend([["id1"]], **{what: "id1"})
    with pytest.raises(InputError, match="candidates: 'id1' is one text"):
        made.recommend([["id1"]], candidates=["id1"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_title_of_several_items_limits_and_denies_all_of_them(
    towers: Towers, encoder: Encoder, strategy: str
) -> None:
    fields = [{"Title": "red pen", "Brand": b} for b in ("Bic", "Lamy")] + [{"Title": "Red  pen"}, {"Title": "mat"}]
    fields += [{"Title": f"blue {n}"} for n in ("cup", "jar", "key")]
    ids = ["a1", "A1", "b", "c", "d", "e", "f"]
    catalogue = encode_catalogue("shop", Catalogue(ids, fields, {}), encoder)
    options = Recommend(strategy=strategy, exclude_seen=False, samples=8)
    made = Recommender(towers, encoder, catalogue, ids, options, aliases={"old": 4, "B": 5})
    pens = {"a1", "A1", "b"}

    def given(**limits: object) -> set[str]:
        return {r.item for r in made.recommend([["mat"]], 7, **limits)[0]}

    assert given(deny=["RED pen"]) == set(ids) - pens
    assert given(allow=["red pen", "c"]) == {*pens, "c"}
    assert given(candidates=[["red pen"]]) == pens
    assert given(deny=["A1"]) == set(ids) - {"A1"}  # case tells ids apart
    assert given(allow=[catalogue.texts[1], "old", "B"]) == {"A1", "d", "e"}
    assert [made.find(n) for n in ("red pen", "a1", "A1", "b", "OLD", "C", "gone")] == [0, 0, 1, 2, 4, 3, None]


def test_a_long_unknown_title_is_cut_also_where_it_comes_twice(encoder: Encoder, catalogue: EncodedCatalogue) -> None:
    asked: list[Tokens] = []

    def draw(prompts: Sequence[Tokens], known: Sequence[np.ndarray]) -> list[Draws]:
        asked.extend(prompts)
        return [NOTHING for _ in prompts]

    ids = [f"id{i}" for i in range(len(catalogue))]
    made = Recommender(None, encoder, catalogue, ids, Recommend(strategy="sample"), draw=draw)
    long = "very long " * 5000
    made.recommend([[long, long], ["id1", long]])
    wording, most = len(encoder.start) + len(encoder.first) + 2 * len(encoder.next), encoder.text.max_item_tokens
    assert [len(p) for p in asked] == [wording + 2 * most, wording + most + len(catalogue.tokens[1])]


def test_users_without_a_history_share_a_batch_with_so_many(encoder: Encoder, catalogue: EncodedCatalogue) -> None:
    sizes: list[int] = []

    def draw(prompts: Sequence[Tokens], known: Sequence[np.ndarray]) -> list[Draws]:
        sizes.append(len(prompts))
        return [NOTHING for _ in prompts]

    options = Recommend(strategy="sample", batch_tokens=640)
    ids = [f"id{i}" for i in range(len(catalogue))]
    made = Recommender(None, encoder, catalogue, ids, options, draw=draw)
    made.recommend([[]] * 25)
    assert sizes == [10, 10, 5]


def test_rerank_is_the_exact_log_probability_of_the_closest_and_fusion_adds_the_cosine(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    prompts = [encoder.prompt([catalogue.tokens[i] for i in history]) for history in ([0, 1, 2], [5])]
    made = recommender(towers, encoder, catalogue, strategy="rerank", rerank=10, exclude_seen=False)
    logp = made.strategies.logprobs(prompts, [np.array([0, 1, 2]), np.array([5])])
    dense = recommender(towers, encoder, catalogue, strategy="dense", exclude_seen=False)
    closest = dense.recommend([["id0", "id1", "id2"], ["id5"]], 10)
    for weight in (0.0, 30.0):
        fused = recommender(
            towers, encoder, catalogue, strategy="rerank", rerank=10, exclude_seen=False, fusion=weight
        ).recommend([["id0", "id1", "id2"], ["id5"]], 10)
        for u, (near, own) in enumerate(zip(closest, fused)):
            wanted = {r.item: logp[u, int(r.item[2:])] + weight * r.score for r in near}
            assert {r.item for r in own} == set(wanted)
            np.testing.assert_allclose([r.score for r in own], sorted(wanted.values(), reverse=True), atol=1e-3)
            assert all("log-probability" in r.why and "similarity" in r.why for r in own)


def test_a_list_longer_than_what_is_reranked_is_whole(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    made = recommender(towers, encoder, catalogue, strategy="rerank", rerank=10)
    assert [len(own) for own in made.recommend([["id0"], []], 15)] == [15, 15]


@torch.no_grad()
def test_dense_is_v_u_against_v_t(towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue) -> None:
    prompt = encoder.prompt([catalogue.tokens[i] for i in (4, 6)])
    user = towers.vectors(torch.from_numpy(prompt)[None], torch.tensor([len(prompt)]))
    items = torch.cat([towers.items(item_chunk([t], int(encoder.start[0]), encoder.pad)) for t in catalogue.tokens])
    cosine = (user @ items.T)[0]
    made = recommender(towers, encoder, catalogue, strategy="dense", exclude_seen=False)
    own = made.recommend([["id4", "id6"]], 7)[0]
    np.testing.assert_allclose([r.score for r in own], cosine.topk(7).values.numpy(), atol=1e-5)
    assert [r.item for r in own] == [f"id{i}" for i in cosine.topk(7).indices.tolist()]


def test_vectors_are_computed_once_and_again_only_for_new_items_or_another_model(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, tmp_path: Path
) -> None:
    start = int(encoder.start[0])
    first = ItemVectors.of(towers, catalogue.tokens[:20], start, encoder.pad)
    again = ItemVectors.of(towers, catalogue.tokens[:20], start, encoder.pad)
    assert (first.encoded, again.encoded) == (20, 0)
    assert torch.equal(first.vectors, again.vectors)
    more = ItemVectors.of(towers, [*catalogue.tokens[25:], *catalogue.tokens[5:10]], start, encoder.pad)
    assert more.encoded == len(catalogue) - 25
    wanted = encode_items(towers, [*catalogue.tokens[25:], *catalogue.tokens[5:10]], start, encoder.pad)
    torch.testing.assert_close(more.vectors, wanted, atol=1e-5, rtol=1e-5)
    file = next((tmp_path / "vectors").iterdir())
    file.write_bytes(file.read_bytes()[:100])  # cut off: made anew
    assert ItemVectors.of(towers, catalogue.tokens[:3], start, encoder.pad).encoded == 3
    weight = next(iter(towers.decoder.parameters()))
    before = model_fingerprint(towers)
    with torch.no_grad():
        weight.mul_(1.01)
    assert model_fingerprint(towers) != before
    assert ItemVectors.of(towers, catalogue.tokens[:3], start, encoder.pad).encoded == 3
    with torch.no_grad():
        weight.div_(1.01)


@pytest.mark.parametrize("strategy", ["beam", "dense", "rerank"])
def test_a_new_item_needs_only_its_text(towers: Towers, encoder: Encoder, strategy: str) -> None:
    domain = make_domain()
    counts = domain.train_counts()
    fields = [*domain.catalogue.fields, {"Title": "purple ladder of bamboo"}]
    larger = replace(
        domain.catalogue,
        ids=[*domain.catalogue.ids, "new"],
        fields=fields,
        aliases={**domain.catalogue.aliases, "new": len(counts)},
    )
    catalogue = encode_catalogue("shop", larger, encoder, np.append(counts, 0), prior=1.0)
    made = Recommender(towers, encoder, catalogue, larger.ids, Recommend(strategy=strategy, rerank=31, beams=31))
    prompt = encoder.prompt([catalogue.tokens[3]])
    scores = Exact(towers, catalogue)(prompt, "catalogue") if strategy != "dense" else cosines(made, prompt)
    before = [i for i in range(30) if i != 3 and scores[i] > scores[30]]
    behind = [larger.ids[i] for i in range(30) if i != 3 and scores[i] < scores[30]]
    (own,) = made.recommend([["id3"]], len(before) + 1)
    assert own[-1].item == "new"
    assert own[-1].score == pytest.approx(scores[30], abs=1e-3)
    assert made.recommend([["id3"]], 1, candidates=[["purple ladder of bamboo", *behind]])[0][0].item == "new"
    assert len(behind) > 2


def test_vectors_of_the_models_used_last_are_kept(
    towers: Towers, catalogue: EncodedCatalogue, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calrec_lite.recommend.vectors.MODELS", 2)
    start = int(encoder.start[0])
    folder = tmp_path / "vectors"
    folder.mkdir()
    for age, name in enumerate(("new", "old", "oldest")):
        (folder / f"{name}.safetensors").write_bytes(b"")
        os.utime(folder / f"{name}.safetensors", (1e9 - age, 1e9 - age))
    ItemVectors.of(towers, catalogue.tokens[:3], start, encoder.pad)
    left = {file.stem for file in folder.iterdir()}
    assert left == {"new", model_fingerprint(towers)}


def test_search_in_blocks_is_search_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(50, 8)).astype(np.float32)))
    users, allowed = vectors[:6] + 0.1, rng.random((6, 50)) < 0.7
    allowed[0], allowed[1, :49] = False, False
    wanted = np.where(allowed, (users @ vectors.T).numpy(), -np.inf)
    for block in (7, 10, 50, 51):  # the last block short, full, and all at once
        monkeypatch.setattr("calrec_lite.recommend.vectors.CHUNK_ITEMS", block)
        items, cosine = ItemVectors(vectors).search(users, allowed, 12)
        np.testing.assert_allclose(cosine, -np.sort(-wanted, 1)[:, :12], atol=1e-6)
        real = cosine.isfinite().numpy()
        assert real.sum(1).tolist() == np.minimum(allowed.sum(1), 12).tolist()
        np.testing.assert_allclose(np.take_along_axis(wanted, items.numpy(), 1)[real], cosine.numpy()[real], atol=1e-6)
        assert all(len({*own[ok]}) == ok.sum() for own, ok in zip(items.numpy(), real))


def test_faiss_finds_what_exact_search_finds(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="the extra calrec-lite[faiss] is not installed")
    exact = recommender(towers, encoder, catalogue, strategy="dense")
    near = recommender(towers, encoder, catalogue, strategy="dense", index="faiss")
    for deny in ((), ("id1", "id2")):
        wanted = exact.recommend(HISTORIES, 5, deny=deny, candidates=[None, None, ["id1", "id20", "id3"][1:], None])
        found = near.recommend(HISTORIES, 5, deny=deny, candidates=[None, None, ["id1", "id20", "id3"][1:], None])
        assert [[r.item for r in own] for own in found] == [[r.item for r in own] for own in wanted]


def test_faiss_in_clusters_keeps_filters_exact_and_most_of_the_nearest() -> None:
    pytest.importorskip("faiss", reason="the extra calrec-lite[faiss] is not installed")
    from calrec_lite.recommend.faiss_index import FaissIndex

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 16))
    points = torch.from_numpy((centres.repeat(100, 0) + 0.3 * rng.normal(size=(5000, 16))).astype(np.float32))
    exact = ItemVectors(torch.nn.functional.normalize(points))
    users = exact.vectors[rng.integers(0, 5000, 40)]
    allowed = rng.random((40, 5000)) < 0.5
    allowed[0] = False
    allowed[0, :3] = True  # few: searched exactly
    wanted, _ = exact.search(users, allowed, 10)
    found, cosine = FaissIndex(exact).search(users, allowed, 10)
    kept = found[1:].numpy()
    assert allowed[np.arange(1, 40)[:, None], kept].all()
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(kept.tolist(), wanted[1:].tolist())]) > 0.8
    assert set(found[0, :3].tolist()) == {0, 1, 2}
    assert cosine[0, 3:].isneginf().all()


@pytest.mark.parametrize("seen", [3, 400])
def test_faiss_searches_users_who_may_get_much_the_same_at_once(monkeypatch: pytest.MonkeyPatch, seen: int) -> None:
    """And each finds what a search of its own finds; one who may get other items is searched alone."""
    pytest.importorskip("faiss", reason="the extra calrec-lite[faiss] is not installed")
    from calrec_lite.recommend import faiss_index

    rng = np.random.default_rng(1)
    exact = ItemVectors(torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(4000, 8)).astype(np.float32))))
    users = exact.vectors[rng.integers(0, 4000, 20)]
    allowed = np.ones((20, 4000), np.bool_)
    for u in range(20):
        nearest, _ = exact.search(users[u : u + 1], allowed[u : u + 1], seen)
        allowed[u, nearest[0].numpy()[rng.random(nearest.shape[1]) < 0.9]] = False
    allowed[7, 1000:] = False
    index = faiss_index.FaissIndex(exact)
    searches: list[int] = []
    search = index.index.search
    monkeypatch.setattr(
        index.index, "search", lambda x, k, params: searches.append(len(x)) or search(x, k, params=params)
    )
    found, cosine = index.search(users, allowed, 10)
    assert searches == [19, 1]
    assert allowed[np.arange(20)[:, None], found.numpy()].all()
    for u in range(20):
        alone, near = index.search(users[u : u + 1], allowed[u : u + 1], 10)
        assert alone[0].tolist() == found[u].tolist()
        torch.testing.assert_close(near[0], cosine[u], rtol=0, atol=1e-6)


def test_a_history_longer_than_the_models_own_length_loses_its_oldest_items(
    tiny_folder: Path, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    """Learned positions end there."""
    most = len(encoder.prompt(catalogue.tokens[:3])) + max(map(len, catalogue.tokens))
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32}
    config = OPTConfig(vocab_size=len(encoder.tokenizer), word_embed_proj_dim=32, max_position_embeddings=most, **shape)
    made = recommender(Towers(OPTForCausalLM(config).eval()), encoder, catalogue)
    assert len(encoder.prompt(catalogue.tokens[:5])) > most + 2  # OPT has two positions more than it says
    assert len(made.recommend([["id0", "id1", "id2", "id3", "id4"]], 5)[0]) == 5


@pytest.mark.parametrize("name", ["no-owner", "owner/two words", "owner/a..b", "a/b/c", "owner/" + "x" * 97, "/name"])
def test_a_name_that_no_repository_has_is_refused_before_anything_is_written(
    name: str, towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    made = recommender(towers, encoder, catalogue)  # which cannot be saved: that would be said next
    with pytest.raises(InputError) as error:
        made.push_to_hub(name)
    assert "save_pretrained" not in str(error.value)
    assert name[:20] in str(error.value)
