"""How the cost of a list grows with the catalogue, the history and the beams."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from calrec_lite.data.domain import Catalogue
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.vectors import ItemVectors
from calrec_lite.text.encoding import Encoder

OTHERS = ("amazon14_beauty", "amazon14_toys", "amazon14_health", "amazon14_clothing", "amazon18_games")
USERS = 32
BATCH_TOKENS = 2048  # on these cores faster than the default, which is made for a GPU
LENGTHS = (2, 5, 10, 20, 40)
BEAMS = (10, 20, 50, 100)


def scale(model: PreTrainedModel, encoder: Encoder, catalogue: EncodedCatalogue, data: Path) -> dict[str, Any]:
    """Users per second of `beam`, `dense` and `rerank`; one thing is changed at a time."""
    whole = encoder.text.model_copy(update={"max_items": max(LENGTHS) + 1, "max_history_tokens": 8192})
    encoder = Encoder(encoder.tokenizer, whole)  # no history is cut
    found: dict[str, Any] = {"users": USERS, "catalogue": {}, "history": {}, "beams": {}}
    titles = larger(catalogue.texts, data)
    for size in (len(catalogue), 40_000, 400_000):
        items = catalogue if size == len(catalogue) else encoded(titles[:size], encoder)
        found["catalogue"][str(size)] = {
            strategy: speed(model, encoder, items, 8, strategy=strategy) for strategy in ("beam", "dense", "rerank")
        }
        print(size, found["catalogue"][str(size)], flush=True)
    for length in LENGTHS:
        found["history"][str(length)] = {
            s: speed(model, encoder, catalogue, length, strategy=s) for s in ("beam", "dense", "rerank")
        }
    for beams in BEAMS:
        found["beams"][str(beams)] = {"beam": speed(model, encoder, catalogue, 8, beams=beams)}
    found["note"] = (
        "40,000 items are real titles of six Amazon domains, 400,000 are halves of such titles put together; vectors "
        "of catalogues above 4,344 items are random, which changes nothing in an exact search"
    )
    return found


def larger(texts: list[str], data: Path) -> list[str]:
    """400,000 distinct titles: the domain's own, other domains', then first and second halves of two real ones."""
    titles = dict.fromkeys(texts)
    for name in OTHERS:
        with gzip.open(data / name / "items.jsonl.gz", "rt", encoding="utf-8") as lines:
            titles |= dict.fromkeys(" ".join(json.loads(line)["title"].split())[:150] for line in lines)
    titles.pop("", None)
    real = list(titles)
    random = np.random.default_rng(0)
    while len(titles) < 400_000:
        a, b = (real[i].split() for i in random.integers(len(real), size=2))
        titles[" ".join([*a[: 1 + len(a) // 2], *b[len(b) // 2 :]])[:150]] = None
    first = real[:40_000]
    known = set(first)
    return [*first, *random.permutation([t for t in titles if t not in known]).tolist()]


def encoded(titles: list[str], encoder: Encoder) -> EncodedCatalogue:
    """A catalogue of titles; those that the limit of tokens makes equal are left out."""
    tokens = encoder.limit(encoder.items(titles))
    first = {t.tobytes(): i for i, t in reversed(list(enumerate(tokens)))}
    kept = [titles[i] for i in sorted(first.values())]
    ids = [str(i) for i in range(len(kept))]
    items = Catalogue(ids, [{"Title": t} for t in kept], {})
    return encode_catalogue("larger", items, encoder, np.ones(len(kept), np.int64), prior=1.0)


def speed(model: PreTrainedModel, encoder: Encoder, catalogue: EncodedCatalogue, length: int, **options: Any) -> float:
    """Users per second, the second of two runs."""
    recommender = Recommender(
        Towers(model),
        encoder,
        catalogue,
        [str(i) for i in range(len(catalogue))],
        Recommend(**{"strategy": "beam", "batch_tokens": BATCH_TOKENS, **options}),
    )
    if len(catalogue) > 10_000:
        vectors = torch.randn(len(catalogue), model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        recommender.strategies.index = ItemVectors(torch.nn.functional.normalize(vectors))
    random = np.random.default_rng(0)
    histories = [random.choice(len(catalogue), length, replace=False) for _ in range(USERS)]
    recommender.rank(histories[:4], 10, exclude_seen=True)
    start = time.perf_counter()
    recommender.rank(histories, 10, exclude_seen=True)
    return USERS / (time.perf_counter() - start)
