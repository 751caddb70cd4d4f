"""`Recommender`: histories in, ranked lists of real items out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calrec_lite.model.base import load_model, load_tokenizer
from calrec_lite.model.towers import Towers
from calrec_lite.recipe import Base, Recommend
from calrec_lite.recommend.decode import Ranked, Sample, beam_search, sample
from calrec_lite.recommend.ground import Grounder, normalised
from calrec_lite.recommend.package import open_package, with_strategy
from calrec_lite.recommend.tree import PromptTree
from calrec_lite.text.encoding import EncodedCatalogue, Encoder, Tokens

Draw = Callable[[Sequence[Tokens]], list[list[Sample]]]


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: what it is called, the id the data gave it, its score and why it is there."""

    title: str
    item: str
    score: float
    why: str


class Recommender:
    """Recommends items of one catalogue with one model. Use `Recommender.from_pretrained` for an exported folder.

    Args:
        towers: the model; None where `draw` has it.
        encoder: the base's tokenizer with the recipe's wording.
        catalogue: the items.
        ids: an outside id for each item.
        aliases: further outside ids -> item, where several were merged into one.
        options: strategy and its numbers.
        seed: of the sampling.
        draw: another engine for `strategy: sample`: prompts -> each user's texts.
    """

    def __init__(
        self,
        towers: Towers | None,
        encoder: Encoder,
        catalogue: EncodedCatalogue,
        ids: Sequence[str],
        options: Recommend,
        seed: int = 0,
        aliases: Mapping[str, int] | None = None,
        draw: Draw | None = None,
    ) -> None:
        if towers is not None:
            towers.decoder.eval()
        self.draw = draw or self._sampled
        self.towers, self.encoder, self.catalogue, self.ids = towers, encoder, catalogue, ids
        self.options, self.seed, self.aliases = options, seed, aliases or {}

    @classmethod
    def from_pretrained(cls, source: str | Path, quantised: bool = False, strategy: str | None = None) -> "Recommender":
        """Open a folder that `calrec-lite export` wrote, or a Hub id of one.

        Args:
            quantised: load in 4 bits.
            strategy: default: the recipe's.

        Raises:
            InputError: if it is no such folder, or no such strategy.
        """
        package = open_package(source)
        options = with_strategy(package.options, strategy)
        base = Base(model=str(package.folder), dtype=package.dtype, load_in_4bit=quantised)
        encoder = Encoder(load_tokenizer(package.folder), package.text)
        towers = Towers(load_model(package.folder, base))
        return cls(towers, encoder, package.catalogue(encoder), package.ids, options, package.seed, package.aliases)

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int | None = None, progress: bool = False
    ) -> list[list[Recommendation]]:
        """The `k` items each user is most likely to take next, best first.

        Args:
            histories: for each user titles (or item ids) oldest first. A title the catalogue does not know is
                written into the history as it is: the model reads it, though it cannot recommend it.
            k: default: the recipe's `recommend.k`. At most the catalogue's size.
        """
        known = [[self._find(t) for t in history] for history in histories]
        tokens = [self._tokens(h, n) for h, n in zip(histories, known)]
        seen = [np.unique([i for i in n if i is not None]).astype(np.int64) for n in known]
        barred = seen if self.options.exclude_seen else [np.empty(0, np.int64)] * len(seen)
        texts = [[t if i is None else self.catalogue.texts[i] for t, i in zip(h, n)] for h, n in zip(histories, known)]
        ranked = self._ranked(tokens, texts, barred, k or self.options.k, progress)
        titles = self.catalogue.titles
        return [
            [
                Recommendation(titles[i], self.ids[i], float(s), why)
                for i, s, why in zip(r.items.tolist(), r.scores.tolist(), r.why)
            ]
            for r in ranked
        ]

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        """(U, k) items for histories of catalogue indices, best first; -1 where the catalogue is used up."""
        tokens = [[self.catalogue.tokens[i] for i in h] for h in histories]
        texts = [[self.catalogue.texts[i] for i in h] for h in histories]
        barred = [np.unique(h).astype(np.int64) if exclude_seen else np.empty(0, np.int64) for h in histories]
        lists = np.full((len(histories), k), -1, np.int64)
        for row, ranked in zip(lists, self._ranked(tokens, texts, barred, k, progress=True)):
            row[: len(ranked.items)] = ranked.items
        return lists

    def _find(self, title: str) -> int | None:
        return self._index.get(normalised(title))

    @cached_property
    def _index(self) -> dict[str, int]:
        """Text, title, or id -> item, looked up in this order; a title of several items means the first of them."""
        names: dict[str, int] = {}
        for column in (self.catalogue.texts, self.catalogue.titles, self.ids):
            for i, name in enumerate(column):
                names.setdefault(normalised(name), i)
        for alias, i in self.aliases.items():
            names.setdefault(normalised(alias), i)
        return names

    @cached_property
    def _grounder(self) -> Grounder:
        return Grounder(self.catalogue.texts)

    def _tokens(self, history: Sequence[str], known: Sequence[int | None]) -> list[Tokens]:
        new = [t for t, i in zip(history, known) if i is None]
        written = iter(self.encoder.limit(self.encoder.items([" ".join(t.split()) for t in new])))
        return [next(written) if i is None else self.catalogue.tokens[i] for i in known]

    def _ranked(
        self,
        tokens: Sequence[Sequence[Tokens]],
        texts: Sequence[Sequence[str]],
        barred: Sequence[np.ndarray],
        k: int,
        progress: bool,
    ) -> list[Ranked]:
        prompts = [self.encoder.prompt(t) for t in tokens]
        k = min(k, len(self.catalogue))
        out: dict[int, Ranked] = {}
        with tqdm(total=len(prompts), desc="recommend", unit="user", disable=not progress) as bar:
            for users in _batches(prompts, self.options.batch_tokens):
                out |= zip(users, self._batch(users, prompts, texts, barred, k))
                bar.update(len(users))
        return [out[u] for u in range(len(prompts))]

    def _batch(
        self,
        users: list[int],
        prompts: Sequence[Tokens],
        texts: Sequence[Sequence[str]],
        barred: Sequence[np.ndarray],
        k: int,
    ) -> list[Ranked]:
        excluded = [barred[u] for u in users]
        if self.options.strategy == "beam":
            tree = self._tree([prompts[u] for u in users])
            found = beam_search(tree, self.catalogue.trie, self.catalogue.bias, max(self.options.beams, k), excluded)
            return [self._completed(f, k, e) for f, e in zip(found, excluded)]
        options = self.options
        drawn = self.draw([prompts[u] for u in users])
        return [
            self._grounder.rank(
                [self.encoder.text_of(s.tokens) for s in own],
                [s.logprob for s in own],
                k,
                excluded[i],
                options.eps,
                options.order,
                texts[users[i]],
            )
            for i, own in enumerate(drawn)
        ]

    def _tree(self, prompts: Sequence[Tokens]) -> PromptTree:
        assert self.towers is not None, "an engine that only draws"
        return PromptTree(self.towers, prompts, self.encoder.pad)

    def _sampled(self, prompts: Sequence[Tokens]) -> list[list[Sample]]:
        draws = [np.random.default_rng([self.seed, *p.tolist()]) for p in prompts]
        options, most = self.options, max(map(len, self.catalogue.tokens))
        return sample(self._tree(prompts), options.samples, options.temperature, self.encoder.stops, most, draws)

    def _completed(self, found: Ranked, k: int, excluded: np.ndarray) -> Ranked:
        """The first `k`; where exclusions left fewer, the rest of the catalogue in a fixed shuffle."""
        short = k - len(found.items)
        if short <= 0:
            return Ranked(found.items[:k], found.scores[:k], found.why[:k])
        order = np.random.default_rng(0).permutation(len(self.catalogue))
        rest = order[~np.isin(order, np.concatenate([found.items, excluded]))][:short]
        scores = np.concatenate([found.scores, np.full(len(rest), -np.inf)])
        return Ranked(np.concatenate([found.items, rest]), scores, [*found.why, *["fill"] * len(rest)])


def _batches(prompts: Sequence[Tokens], tokens: int) -> Iterator[list[int]]:
    """Users of similar prompt length together, as many as fit `tokens`; the longest first."""
    order = sorted(range(len(prompts)), key=lambda u: (-len(prompts[u]), u))
    at = 0
    while at < len(order):
        size = max(1, tokens // len(prompts[order[at]]))
        yield order[at : at + size]
        at += size
