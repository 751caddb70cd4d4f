"""The paper's generation: texts sampled over one shared prompt cache (docs/method.md, 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.model.head_loss import HEAD_ENTRIES


@dataclass(frozen=True)
class Sample:
    """A generated text: its tokens, the one that ended it too, and their summed log-probability (at temperature 1)."""

    tokens: list[int]
    logprob: float


@torch.no_grad()
def sample(
    tree: PromptTree,
    n: int,
    temperature: float,
    stops: np.ndarray,
    max_tokens: int,
    generators: Sequence[np.random.Generator],
) -> list[list[Sample]]:
    """Draw `n` texts a user at `temperature`, each until a token of `stops` or `max_tokens` (docs/method.md, 6).

    Args:
        generators: one random generator a user, so that a user's texts do not depend on who shares the batch.
    """
    device = tree.device
    ends = torch.from_numpy(stops).to(device)
    logprob = torch.zeros(len(generators), n, dtype=torch.double, device=device)
    alive = torch.ones(len(generators), n, dtype=torch.bool, device=device)
    slots = torch.zeros(len(generators), n, dtype=torch.long, device=device)  # at first all continue the prompt itself
    step_tokens: list[Tensor] = []  # the tokens (U, n) of each step; -1: the text has ended
    for step in range(max_tokens):
        tokens, logp = _draw(tree, slots, alive, temperature, generators)
        logprob[alive] += logp.double()
        step_tokens.append(torch.full_like(slots, -1).masked_scatter(alive, tokens))
        unfinished = ~torch.isin(tokens, ends)
        alive = alive.masked_scatter(alive, unfinished)
        if step == max_tokens - 1 or not bool(alive.any()):
            break
        tree.extend(slots, alive.long(), tokens[unfinished])
        slots = torch.arange(n, device=device).expand(len(generators), -1)
    drawn = torch.stack(step_tokens, 2).cpu().numpy()  # (U, n, steps)
    total = logprob.cpu().numpy()
    return [[Sample([int(t) for t in row if t >= 0], float(p)) for row, p in zip(*user)] for user in zip(drawn, total)]


def _draw(
    tree: PromptTree, slots: Tensor, alive: Tensor, temperature: float, generators: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """The next token of each living continuation, user by user, and its log-probability: (A,), (A,)."""
    user, place = alive.nonzero(as_tuple=True)
    states, head = tree.states[user, slots[user, place]], tree.towers.head  # (A, D), (V, D)
    counts = alive.sum(1).tolist()
    uniform = torch.from_numpy(np.concatenate([g.random(c) for g, c in zip(generators, counts)])).to(states.device)
    size = max(1, HEAD_ENTRIES // len(head))
    parts = [_invert_cdf(s @ head.T, u, temperature) for s, u in zip(states.split(size), uniform.split(size))]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logp for _, logp in parts])


def _invert_cdf(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens drawn by inverting the distribution of each row of `logits` (S, V) at `uniform` (S,); both (S,)."""
    logits = logits.float()
    cdf = (logits / temperature).softmax(-1).cumsum(-1)
    target = uniform.to(cdf.dtype) * cdf[:, -1]
    tokens = torch.searchsorted(cdf, target.unsqueeze(1), right=True).clamp(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logits.gather(1, tokens).squeeze(1) - logits.logsumexp(-1)
