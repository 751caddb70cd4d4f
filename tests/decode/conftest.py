"""Models to decode with, some histories, and the plain way to score an item."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from calrec_lite.data.domain import Domain
from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.method.batch import item_chunk
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.towers import Towers
from calrec_lite.package.layout import PackageInfo, write_package
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.text.encoding import Encoder

HISTORIES = [[0, 1, 2], [5], [7, 8, 9, 10, 11], []]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def causal(request: pytest.FixtureRequest, tiny_folder: Path, encoder: Encoder) -> PreTrainedModel:
    """A model of full attention, and one with a sliding window shorter than the prompts."""
    if request.param == "llama":
        return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(encoder.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"] * 2,
        initializer_range=0.3,
    )
    return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def towers(causal: PreTrainedModel) -> Towers:
    return Towers(causal)


@pytest.fixture
def prompts(encoder: Encoder, catalogue: EncodedCatalogue) -> list[np.ndarray]:
    return [encoder.prompt([catalogue.tokens[i] for i in history]) for history in HISTORIES]


@pytest.fixture(params=["catalogue", "vocabulary"])
def paths(request: pytest.FixtureRequest, catalogue: EncodedCatalogue) -> TrieTensors:
    return TrieTensors.of(catalogue, request.param)


@pytest.fixture
def everything(prompts: list[np.ndarray], catalogue: EncodedCatalogue) -> np.ndarray:
    """Every user may be recommended every item."""
    return np.ones((len(prompts), len(catalogue)), np.bool_)


class Exact:
    """(N,) log-probability of every item, each scored by itself in a forward of its whole text.

    `weights` (N,) are those of the items in the prior: their counts, unless a test sets others.
    """

    def __init__(self, towers: Towers, catalogue: EncodedCatalogue) -> None:
        self.towers, self.plain, self.weights = towers, [t.tolist() for t in catalogue.tokens], catalogue.counts + 1.0
        self.logit_scale = catalogue.logit_scale

    @torch.no_grad()
    def __call__(self, prompt: np.ndarray, score: str) -> np.ndarray:
        scores = np.zeros(len(self.plain))
        for i, tokens in enumerate(self.plain):
            ids = torch.tensor([[*prompt.tolist(), *tokens]])
            logits = (self.towers.states(ids)[0] @ self.towers.head.T).float()[len(prompt) - 1 : -1]
            if score == "vocabulary":
                scores[i] = float(logits.log_softmax(-1)[range(len(tokens)), tokens].sum())
            else:
                scores[i] = sum(self._at_fork(logits[d], tokens, d) for d in range(len(tokens)))
        return scores

    def _at_fork(self, logits: torch.Tensor, tokens: Sequence[int], d: int) -> float:
        children = sorted({t[d] for t in self.plain if t[:d] == tokens[:d]})
        below = [sum(n for t, n in zip(self.plain, self.weights) if t[: d + 1] == [*tokens[:d], c]) for c in children]
        logp = (self.logit_scale * logits[children] + torch.tensor(below).log()).log_softmax(-1)
        return float(logp[children.index(tokens[d])])


def cosines(made: Recommender, prompt: np.ndarray) -> np.ndarray:
    """(N,) of v_U and each v_T, one by one."""
    towers, encoder = made.strategies.towers, made.encoder
    with torch.no_grad():
        user = towers.vectors(torch.from_numpy(prompt)[None], torch.tensor([len(prompt)]))
        start, tokens = int(encoder.start[0]), made.catalogue.tokens
        return np.array([float(user @ towers.items(item_chunk([t], start, encoder.pad)).T) for t in tokens])


@pytest.fixture
def exact(towers: Towers, catalogue: EncodedCatalogue) -> Exact:
    return Exact(towers, catalogue)


@pytest.fixture
def tree(towers: Towers, prompts: list[np.ndarray], encoder: Encoder) -> PromptTree:
    with torch.no_grad():
        return PromptTree(towers, prompts, encoder.pad)


@pytest.fixture
def package(tiny_folder: Path, tmp_path: Path, domain: Domain, encoder: Encoder) -> Path:
    """What `calrec-lite export` writes, of the tiny model."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    info = PackageInfo(
        domain="shop",
        fingerprint="0",
        labels=["Title"],
        dtype="float32",
        text=encoder.text,
        recommend=Recommend(strategy="beam"),
        prior=1.0,
        logit_scale=0.5,
        seed=0,
    )
    write_package(folder, info, domain.catalogue, domain.train_counts())
    return folder
