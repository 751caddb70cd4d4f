"""The zero-shot dense baseline with a tiny random encoder; tests/real has the true one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import calrec_lite.evaluate.baselines.minilm as minilm_module
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import build_baseline
from calrec_lite.evaluate.baselines.counting import BASELINES, PopularityBaseline
from calrec_lite.evaluate.baselines.minilm import MiniLMBaseline, _encode
from calrec_lite.evaluate.baselines.sasrec import SASRecBaseline
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe import MiniLMSettings as Options
from calrec_lite.recipe.file import check_recipe
from tests.conftest import WORDS

TITLES = [f"{first} {second}" for first in WORDS[:6] for second in WORDS[6:11]]
SEQUENCES = [np.random.default_rng(n).permutation(30)[: 3 + n % 7].tolist() for n in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


def test_vectors_are_those_of_sentence_transformers(make_domain: Any, encoder_folder: Path) -> None:
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    titles = [*TITLES, "red", "blue cup cup cup pen box rug"]  # of several lengths, so that there is padding
    vectors = _encode(make_domain([[0, 1, 2]], titles).catalogue, str(encoder_folder))
    model = st.SentenceTransformer(modules=[Transformer(str(encoder_folder)), Pooling(32, "mean"), Normalize()])
    theirs = model.encode([f"Title: {title}" for title in titles], convert_to_numpy=True)
    np.testing.assert_allclose(vectors, theirs, atol=1e-5)


def test_neighbours_of_the_latest_items(make_domain: Any, encoder_folder: Path) -> None:
    domain = make_domain(SEQUENCES, TITLES)
    ranker = MiniLMBaseline(domain, 0, Options(model=str(encoder_folder), latest=[2]), True)
    vectors = _encode(domain.catalogue, str(encoder_folder))
    history = np.array([9, 4, 17], dtype=np.int32)
    cosines = vectors @ (vectors[4] + vectors[17])
    expected = [item for item in np.argsort(-cosines).tolist() if item not in (9, 4, 17)][:10]
    assert ranker.rank([history], 10, True)[0].tolist() == expected
    nobody = [np.empty(0, dtype=np.int32)]
    np.testing.assert_array_equal(ranker.rank(nobody, 5, True), PopularityBaseline(domain, 0).rank(nobody, 5, True))


def test_how_many_items_is_chosen_on_validation(make_domain: Any, encoder_folder: Path) -> None:
    domain = make_domain(SEQUENCES, TITLES)
    ranker = MiniLMBaseline(domain, 0, Options(model=str(encoder_folder), latest=[1, 2, 4]), True)
    assert ranker.latest == max(ranker.validation, key=lambda latest: ranker.validation[latest])
    cases = build_cases(domain, "validation", None, 0)
    for latest, value in ranker.validation.items():
        one = MiniLMBaseline(domain, 0, Options(model=str(encoder_folder), latest=[latest]), True)
        found = evaluate_system(one, cases, Protocol(split="validation", bootstrap=5))
        assert found.metrics["ndcg@10"]["value"] == pytest.approx(value)
    assert len(set(ranker.validation.values())) > 1


def test_items_are_encoded_once(
    make_domain: Any, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(encoder_folder, own)
    domain, options = make_domain(SEQUENCES, TITLES), Options(model=str(own))
    histories, encode = [np.array([1, 2], dtype=np.int32)], minilm_module._encode
    asked: list[str] = []
    monkeypatch.setattr(minilm_module, "_encode", lambda *a: asked.append(a[1]) or encode(*a))
    lists = MiniLMBaseline(domain, 0, options, True).rank(histories, 10, True)
    np.testing.assert_array_equal(MiniLMBaseline(domain, 0, options, True).rank(histories, 10, True), lists)
    assert len(asked) == 1
    MiniLMBaseline(make_domain(SEQUENCES, TITLES, "e" * 64), 0, options, True)
    assert len(asked) == 2
    (own / "model.safetensors").touch()  # a folder of one's own may be trained on
    MiniLMBaseline(domain, 0, options, True)
    assert len(asked) == 3
    shutil.rmtree(own)
    with pytest.raises(InputError, match=r"evaluate\.minilm\.model"):
        MiniLMBaseline(domain, 0, options, True)


@pytest.mark.parametrize(
    "name", ["popularity", "last_item", "personal_popularity", "bm25_last", "transitions", "minilm", "sasrec"]
)
def test_every_baseline_is_built_from_a_recipe(make_domain: Any, encoder_folder: Path, name: str) -> None:
    recipe = check_recipe(
        {
            "name": "r",
            "base": {"model": "m"},
            "domains": {"d": {"interactions": "x.csv"}},
            "stages": [{"name": "s", "domains": ["d"], "epochs": 1}],
            "evaluate": {
                "baselines": [name],
                "minilm": {"model": str(encoder_folder)},
                "sasrec": {"hidden": 8, "epochs": 1},
            },
        }
    )
    domain = make_domain(SEQUENCES, TITLES)
    cases = build_cases(domain, "test", None, 0)
    ranker = build_baseline(name, domain, recipe)
    assert type(ranker) is {**BASELINES, "minilm": MiniLMBaseline, "sasrec": SASRecBaseline}[name]
    assert len(evaluate_system(ranker, cases, Protocol.of(recipe)).ranks) == len(cases.users)


def test_an_encoder_that_is_not_whole_is_refused(make_domain: Any, encoder_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "word_embeddings" not in k}, folder / "model.safetensors")
    with pytest.raises(InputError, match="weights lack embeddings.word_embeddings.weight"):
        MiniLMBaseline(make_domain(SEQUENCES, TITLES), 0, Options(model=str(folder), latest=[2]), True)
