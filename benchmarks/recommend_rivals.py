"""What a user of transformers would write today: the paper's sampling, and beam search over a trie (rows A and B)."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.recommend.ground import Grounder
from calrec_lite.text.encoding import Encoder

Lists = list[list[int]]


def unseen(items: Iterable[int], history: np.ndarray, k: int) -> list[int]:
    """The first `k` items that the user has not had."""
    seen = set(history.tolist())
    return [int(i) for i in items if i not in seen][:k]


class SampleAndGround:
    """A: `generate` draws 32 texts a user, BM25 finds the items (docs/method.md, 6: the paper's order)."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder, catalogue: EncodedCatalogue, samples: int) -> None:
        self.model, self.encoder, self.catalogue, self.samples = model, encoder, catalogue, samples
        self.grounder = Grounder(catalogue.texts)
        self.most = max(map(len, catalogue.tokens))

    @torch.no_grad()
    def rank(self, histories: Sequence[np.ndarray], k: int) -> Lists:
        torch.manual_seed(0)
        return [self._one(history, k) for history in histories]

    def _one(self, history: np.ndarray, k: int) -> list[int]:
        prompt = torch.from_numpy(self.encoder.prompt([self.catalogue.tokens[i] for i in history]))[None]
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            num_return_sequences=self.samples,
            temperature=0.5,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.most,
            eos_token_id=self.encoder.stops.tolist(),
            pad_token_id=self.encoder.pad,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
        texts = out.sequences[:, prompt.shape[1] :]
        logp = self.model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)  # (S, T)
        stop = torch.isin(texts, torch.from_numpy(self.encoder.stops)).int()
        over = stop.cumsum(1) - stop > 0  # what stands after the first stop
        logp = logp.masked_fill(over, 0).sum(1)
        allowed = np.ones(len(self.catalogue), np.bool_)
        allowed[history] = False
        words = [self.encoder.text_of(own[~out_].tolist()) for own, out_ in zip(texts, over)]
        past = [self.catalogue.texts[i] for i in history]
        return self.grounder.rank(words, logp.tolist(), k, allowed, 1 / 5000, "paper", past).items.tolist()


class Prior(LogitsProcessor):
    """The model's popularity prior (`loss.prior`): what is added to each child's scaled score, by the tokens before."""

    def __init__(self, children: dict[tuple[int, ...], dict[int, float]], logit_scale: float, start: int) -> None:
        self.children, self.logit_scale, self.start = children, logit_scale, start

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, own in zip(scores, ids[:, self.start :].tolist()):
            found = self.children.get(tuple(own), {})
            bias = torch.tensor(list(found.values()), dtype=row.dtype)
            row[list(found)] = self.logit_scale * row[list(found)] + bias
        return scores


class TrieBeams:
    """B: `generate(num_beams=20, prefix_allowed_tokens_fn=...)` over the catalogue's trie."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder, catalogue: EncodedCatalogue, beams: int) -> None:
        self.model, self.encoder, self.catalogue, self.beams = model, encoder, catalogue, beams
        self.plain = [tuple(t.tolist()) for t in catalogue.tokens]
        self.item = {tokens: i for i, tokens in enumerate(self.plain)}
        self.most = max(map(len, self.plain)) + 1
        self.children: dict[tuple[int, ...], dict[int, float]] = {}
        trie = catalogue.trie
        for i, tokens in enumerate(self.plain):
            edges = trie.path[trie.path_ptr[i] : trie.path_ptr[i + 1]]
            bias = dict(zip(trie.depth[trie.owner[edges]].tolist(), catalogue.bias[edges].tolist()))
            for d, token in enumerate(tokens):
                self.children.setdefault(tokens[:d], {})[token] = bias.get(d, 0.0)
            self.children[tokens] = {encoder.end: 0.0}

    def rank(self, histories: Sequence[np.ndarray], k: int) -> Lists:
        return [unseen(self.scored(history)[0], history, k) for history in histories]

    @torch.no_grad()
    def scored(self, history: np.ndarray) -> tuple[list[int], list[float]]:
        """All `beams` items, seen ones too, and their log-probabilities."""
        prompt = torch.from_numpy(self.encoder.prompt([self.catalogue.tokens[i] for i in history]))[None]
        start, end = prompt.shape[1], self.encoder.end
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=self.beams,
            num_return_sequences=self.beams,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            renormalize_logits=True,
            max_new_tokens=self.most,
            eos_token_id=end,
            pad_token_id=end,
            use_cache=True,
            prefix_allowed_tokens_fn=lambda _, ids: list(self.children.get(tuple(ids[start:].tolist()), {end: 0.0})),
            logits_processor=LogitsProcessorList([Prior(self.children, self.catalogue.logit_scale, start)]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        texts = [tuple(t for t in own[start:].tolist() if t != end) for own in out.sequences]
        return [self.item[t] for t in texts], out.sequences_scores.tolist()
