"""The ways to make a list (docs/method.md, 6 and 8), behind one call: fused, fast, beam, sample, dense, rerank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from calrec_lite.data.transitions import Transitions
from calrec_lite.decode.beam import beam_search
from calrec_lite.decode.exact import catalogue_logprobs, item_logprobs
from calrec_lite.decode.prompt_tree import PromptTree, padded
from calrec_lite.decode.ranked import Ranked
from calrec_lite.decode.sample import Sample, sample
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.errors import InputError, RunError
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.model.memory import cache_bytes, free_bytes
from calrec_lite.package.layout import with_strategy
from calrec_lite.recipe import Recommend
from calrec_lite.recommend.batching import batch_tokens, batches
from calrec_lite.recommend.draws import Draws
from calrec_lite.recommend.faiss_index import FaissIndex
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.ground import Grounder
from calrec_lite.recommend.rerank import Candidates
from calrec_lite.recommend.vectors import ItemVectors, text_vectors
from calrec_lite.text.encoding import Encoder, Tokens

if TYPE_CHECKING:  # it loads PEFT, which takes seconds
    from calrec_lite.method.towers import Towers

Draw = Callable[[Sequence[Tokens], Sequence[np.ndarray]], list[Draws]]


@dataclass(frozen=True)
class Users:
    """A batch of users as strategies see them; all lists are of length U.

    Attributes:
        prompts: histories as ids.
        texts: the items of each history as texts.
        known: those of them that the catalogue knows, as indices, oldest first.
    """

    prompts: Sequence[Tokens]
    texts: Sequence[Sequence[str]]
    known: Sequence[np.ndarray]


class Strategies:
    """Lists from prompts, a batch of users at a time.

    Args:
        towers, encoder, catalogue: the model, its tokenizer, the items. Without a model (None) `draw` has it.
        options: which strategy, and its numbers.
        seed: of the sampling; a user's texts depend on it and on the prompt, not on the other users.
        draw: another engine for `strategy: sample`: `Users.prompts` and `known` -> the items drawn for each user.
        transitions: counts of which item followed which, for `strategy: rerank`.
        fusion: fitted readings, for `strategy: fused` and `fast`.
    """

    def __init__(
        self,
        towers: "Towers | None",
        encoder: Encoder,
        catalogue: EncodedCatalogue,
        options: Recommend,
        seed: int,
        draw: Draw | None = None,
        transitions: Transitions | None = None,
        fusion: Fusion | None = None,
    ) -> None:
        if options.counts_transitions and transitions is None:
            raise ValueError("recommend.transitions needs the counts of what followed what")
        if options.fits and fusion is None:
            raise ValueError(f"strategy: {options.strategy} needs fitted readings")
        self.model, self.encoder, self.catalogue = towers, encoder, catalogue
        self.options, self.seed, self.draw = options, seed, draw
        self.transitions, self.fusion = transitions, fusion

    @torch.no_grad()
    def rank(self, users: Users, allowed: np.ndarray, k: int, strategy: str | None = None) -> list[Ranked]:
        """The best `k` allowed items of each user, or all of them where fewer are allowed.

        Args:
            allowed: (U, N).
            strategy: default: that of the options.
        """
        make = {
            "fused": self._fused,
            "fast": self._fast,
            "beam": self._beam,
            "sample": self._sample,
            "dense": self._dense,
            "rerank": self._rerank,
        }
        return make[strategy or self.options.strategy](users, allowed, k)

    def require(self, strategy: str) -> None:
        """Raise InputError where what is loaded does not serve for a strategy."""
        options = with_strategy(self.options, strategy)
        weights = self.fusion is not None and (strategy != "fused" or self.fusion.fused is not None)
        if options.fits and not weights:
            raise InputError(f"strategy {strategy}: its fitted weights are not loaded; open the model with it")
        if options.counts_transitions and self.transitions is None:
            raise InputError(f"strategy {strategy}: its transitions are not loaded; open the model with it")
        if self.model is None and strategy != "fast":
            raise InputError(f"strategy {strategy}: the LLM is not loaded; open the model with it")

    @torch.no_grad()
    def logprobs(self, prompts: Sequence[Tokens], known: Sequence[np.ndarray]) -> np.ndarray:
        """(U, N) exact log-probability of every item of a small catalogue: what `beam` is checked against.

        Args:
            prompts, known: as of `Users`.
        """
        return catalogue_logprobs(self.prompt_tree(prompts), self.catalogue.trie, self._paths.for_users(known))

    @torch.no_grad()
    def candidates(
        self, users: Users, allowed: np.ndarray, k: int = 1, transitions: Transitions | None = None
    ) -> list[Candidates]:
        """For each user the `recommend.rerank` (at least `k`) closest allowed items with all that may order them.

        Args:
            transitions: as many items again, those that these score highest, are added.
        """
        tree = self.prompt_tree(users.prompts)
        n = max(self.options.rerank, k)
        nearest, cosine = self.index.search(tree.users, allowed, n)
        finite = cosine.isfinite().cpu().numpy()
        near, cosines = ([row[some] for row, some in zip(values.cpu().numpy(), finite)] for values in (nearest, cosine))
        items, followed = near, [np.zeros(len(row)) for row in near]
        if transitions is not None:
            scores = np.where(allowed, transitions.scores(users.known), 0)  # (U, N)
            items = [np.union1d(row, _top_positive(score, n)) for row, score in zip(near, scores)]
            followed = [np.log(score[row] + transitions.FLOOR) for row, score in zip(items, scores)]
            cosines = [self.index.cosine(user, row) for user, row in zip(tree.users, items)]
        logp = self.likelihood(tree, users.known, items)
        return [Candidates(row, logp[u], cosines[u], followed[u], np.isin(row, near[u])) for u, row in enumerate(items)]

    def likelihood(
        self, tree: PromptTree, known: Sequence[np.ndarray], items: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Exact log-probabilities of each user's `items` after the prompts of `tree`; `known` as of `Users`."""
        return item_logprobs(tree, self.catalogue.trie, self._paths.for_users(known), items)

    @property
    def towers(self) -> "Towers":
        """The model, where it is in this process, without dropout: it may have been trained since its last use."""
        assert self.model is not None, "an engine that only draws"
        if self.model.decoder.training:
            self.model.decoder.eval()
        return self.model

    @cached_property
    def _paths(self) -> TrieTensors:
        return TrieTensors.of(self.catalogue, self.options.score).to(self.towers.head.device)

    @cached_property
    def _mean_length(self) -> float:
        return float(self.catalogue.tokens.lengths.mean())

    @cached_property
    def batch_tokens(self) -> int:
        """Prompt tokens of a batch, by the memory there was when it was first asked for."""
        return batch_tokens(self.options, self.model, self.encoder.longest_prompt, self._mean_length)

    @cached_property
    def _grounder(self) -> Grounder:
        half = self.encoder.text.max_item_tokens // 2  # what was cut has more (`Encoder.limit`)
        tokens = self.catalogue.tokens
        long = np.flatnonzero(tokens.lengths > half).tolist()
        cut = {i: self.encoder.text_of(tokens[i].tolist()) for i in long}
        return Grounder(self.catalogue.texts, cut)

    @cached_property
    def item_vectors(self) -> ItemVectors:
        """v_T of every item."""
        start = int(self.encoder.start[0])
        return ItemVectors.of(self.towers, self.catalogue.tokens, start, self.encoder.pad, progress=True)

    def text_vectors(self) -> Tensor:
        """(N, 2, D) what fused lists are fitted to (`vectors.text_vectors`)."""
        start = int(self.encoder.start[0])
        return text_vectors(self.towers, self.catalogue.tokens, start, self.encoder.pad, progress=True)

    @cached_property
    def index(self) -> ItemVectors | FaissIndex:
        return self.item_vectors if self.options.index == "exact" else FaissIndex(self.item_vectors)

    @torch.no_grad()
    def user_vectors(self, prompts: Sequence[Tokens]) -> np.ndarray:
        """(U, D) unit vectors v_U of prompts, batch by batch."""
        vectors = np.zeros((len(prompts), self.towers.head.shape[1]), np.float32)
        for users in batches(prompts, self.batch_tokens):
            vectors[users] = self._user_vectors([prompts[u] for u in users]).cpu().numpy()
        return vectors

    def _user_vectors(self, prompts: Sequence[Tokens]) -> Tensor:
        ids, lengths = (t.to(self.towers.head.device) for t in padded(prompts, self.encoder.pad))
        return self.towers.vectors(ids, lengths)

    def prompt_tree(self, prompts: Sequence[Tokens]) -> PromptTree:
        """The prompts run through the model, ready for continuations."""
        return PromptTree(self.towers, prompts, self.encoder.pad)

    def _require_memory(self, prompts: Sequence[Tokens], continuations: int, key: str) -> None:
        """Raise RunError where keys, values and mask of so many continuations, of items of mean length, cannot fit.

        On a CPU: a GPU says so itself, but a system without room kills the process, and nothing is said.
        """
        if (device := self.towers.head.device).type != "cpu":
            return
        tokens = max(map(len, prompts)) + continuations * self._mean_length
        needed = len(prompts) * tokens * (cache_bytes(self.towers.decoder) + continuations)
        if needed > (free := free_bytes(device)):
            raise RunError(
                f"{len(prompts)} users at once with {key}: {continuations} may take {needed / 1e9:,.1f} GB, and "
                f"{free / 1e9:,.1f} GB are free: set {key} or recommend.batch_tokens lower (in the recipe; of an "
                "export, in calrec.json)"
            )

    def _fast(self, users: Users, allowed: np.ndarray, k: int) -> list[Ranked]:
        assert self.fusion is not None
        return self.fusion.rank(users.known, allowed, k)

    def _fused(self, users: Users, allowed: np.ndarray, k: int) -> list[Ranked]:
        assert self.fusion is not None
        likelihood = partial(self.likelihood, self.prompt_tree(users.prompts), users.known)
        return self.fusion.rank(users.known, allowed, k, self.options.rerank, likelihood)

    def _beam(self, users: Users, allowed: np.ndarray, k: int) -> list[Ranked]:
        beams = max(self.options.beams, k)
        self._require_memory(users.prompts, beams, "recommend.beams")
        tree, paths = self.prompt_tree(users.prompts), self._paths.for_users(users.known)
        return beam_search(tree, self.catalogue.trie, paths, beams, k, allowed)

    def _sample(self, users: Users, allowed: np.ndarray, k: int) -> list[Ranked]:
        options, counts = self.options, self.catalogue.counts
        if self.draw:
            drawn = self.draw(users.prompts, users.known)
            return [draws.ranked(k, row, counts) for draws, row in zip(drawn, allowed, strict=True)]
        return [
            self._grounder.rank(
                [self.encoder.text_of(s.tokens) for s in samples],
                [s.logprob for s in samples],
                k,
                allowed[i],
                options.eps,
                options.order,
                users.texts[i],
            )
            for i, samples in enumerate(self.sample_texts(users.prompts))
        ]

    def sample_texts(self, prompts: Sequence[Tokens]) -> list[list[Sample]]:
        """Texts drawn freely after each prompt, for `strategy: sample`."""
        rngs = [np.random.default_rng([self.seed, *p.tolist()]) for p in prompts]
        options, longest = self.options, self.catalogue.tokens.longest
        self._require_memory(prompts, options.samples, "recommend.samples")
        return sample(
            self.prompt_tree(prompts), options.samples, options.temperature, self.encoder.stops, longest, rngs
        )

    @torch.no_grad()
    def _dense(self, users: Users, allowed: np.ndarray, k: int) -> list[Ranked]:
        nearest, cosine = self.index.search(self._user_vectors(users.prompts), allowed, k)
        return [_rank_by_cosine(*of_user) for of_user in zip(nearest.cpu().numpy(), cosine.cpu().numpy())]

    def _rerank(self, users: Users, allowed: np.ndarray, k: int) -> list[Ranked]:
        weights = self.options.fusion, self.options.transitions
        counts = self.transitions if self.options.transitions else None
        return [_rank_candidates(candidates, *weights, k) for candidates in self.candidates(users, allowed, k, counts)]


def _rank_candidates(candidates: Candidates, fusion: float, transitions: float, k: int) -> Ranked:
    order, scores = candidates.best(fusion, transitions, k)
    why = [f"log-probability {candidates.logp[i]:.2f}, similarity {candidates.cosine[i]:.3f}" for i in order]
    if transitions:
        why = [f"{reason}, log transitions {candidates.followed[i]:.2f}" for reason, i in zip(why, order)]
    shares = {"log-probability": candidates.logp, "similarity": fusion * candidates.cosine}
    shares |= {"log transitions": transitions * candidates.followed} if transitions else {}
    parts = [{name: float(share[i]) for name, share in shares.items()} for i in order]
    return Ranked(candidates.items[order], scores, why, parts)


def _top_positive(scores: np.ndarray, n: int) -> np.ndarray:
    """Of `scores` (N,) the items of the `n` highest that are above zero."""
    best = np.argpartition(-scores, min(n, len(scores) - 1))[:n]
    return best[scores[best] > 0]


def _rank_by_cosine(items: np.ndarray, cosine: np.ndarray) -> Ranked:
    finite = np.isfinite(cosine)
    return Ranked(items[finite], cosine[finite], [f"similarity {s:.3f}" for s in cosine[finite].tolist()])
