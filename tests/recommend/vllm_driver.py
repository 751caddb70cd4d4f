"""vLLM's two model runners as a logits processor sees them, over a real model of transformers on a CPU.

Kept by the documents and the source of vLLM 0.33: slots taken from a free list, rows in another order at each step,
prompts read in parts, requests put off and taken up again with what they have drawn (V2); rows filled anew, moved
down and swapped (V1). Scheduling is drawn at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from calrec_lite.method.towers import Towers
from calrec_lite.recommend.vllm_rows import BatchRows, SlotRows

CONTEXT = (
    *("expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "expanded_local_pos", "input_ids", "pos"),
    "seq_lens_upper_bound_np",
)
STATES = ("device", "max_num_reqs", "vocab_size", "all_token_ids", "prompt_len")
UPDATE = ("batch_size", "removed", "added", "moved")
Judge = Callable[["Request", torch.Tensor], None]


def named(names: Sequence[str], **values: Any) -> SimpleNamespace:
    """A record of vLLM's, with the fields that `test_vllm_real` compares with vLLM's own."""
    assert set(values) == set(names)
    return SimpleNamespace(**values)


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass
class Request:
    """A text of a prompt; `fed`: tokens the model has read of it."""

    prompt: list[int]
    params: Any
    output: list[int] = field(default_factory=list)
    logprob: float = 0.0
    fed: int = 0

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.output]

    @property
    def finished(self) -> bool:
        ended = bool(self.output) and self.output[-1] in self.params.stop_token_ids
        return ended or len(self.output) == self.params.max_tokens


class Runner:
    """What both have in common: `generate` as `vllm.LLM`'s, a forward, and the drawing of a token.

    Args:
        judge: sees each asked row after the processor.
    """

    def __init__(self, towers: Towers, slots: int, seed: int, judge: Judge | None = None) -> None:
        self.towers, self.slots, self.judge = towers, slots, judge
        self.rng, self.draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.waiting: list[Request] = []

    def generate(self, prompts: Sequence[Any], params: Sequence[Any], use_tqdm: bool) -> list[SimpleNamespace]:
        groups = [
            [Request(list(prompt["prompt_token_ids"]), own) for _ in range(own.n)]
            for prompt, own in zip(prompts, params, strict=True)
        ]
        self.waiting = [request for group in groups for request in group]
        self.rng.shuffle(self.waiting)  # type: ignore[arg-type]
        while self.step():
            pass
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=r.output, cumulative_logprob=r.logprob) for r in group])
            for group in groups
        ]

    def step(self) -> bool:
        raise NotImplementedError

    @torch.no_grad()
    def logits(self, texts: Sequence[list[int]]) -> torch.Tensor:
        """(R, V) after each text."""
        ends = torch.tensor([len(text) for text in texts])
        ids = torch.zeros(len(texts), int(ends.max()), dtype=torch.long)
        for row, text in zip(ids, texts):
            row[: len(text)] = torch.tensor(text)
        states = self.towers.states(ids)[torch.arange(len(texts)), ends - 1]
        return (states @ self.towers.head.T).float()

    def draw(self, request: Request, row: torch.Tensor) -> None:
        """`logprobs_mode="processed_logits"`: what is added up is the logit, divided by the temperature."""
        if self.judge and (request.params.extra_args or {}).get("catalogue") is not None:
            self.judge(request, row)
        row = row / request.params.temperature
        token = int(torch.multinomial(row.softmax(-1), 1, generator=self.draws))
        request.output.append(token)
        request.logprob += float(row[token])


class V2Runner(Runner):
    """Slots, and a device that has the tokens."""

    def __init__(self, processor: Callable[[Any], SlotRows], *rest: Any) -> None:
        super().__init__(*rest)
        long = 512
        self.states = named(
            STATES,
            device=torch.device("cpu"),
            max_num_reqs=self.slots,
            vocab_size=len(self.towers.head),
            all_token_ids=SimpleNamespace(gpu=torch.full((self.slots, long), -7, dtype=torch.int32)),
            prompt_len=SimpleNamespace(np=np.zeros(self.slots, np.int32)),
        )
        self.processor = processor(self.states)
        self.free = list(range(self.slots))
        self.running: dict[int, Request] = {}  # slot -> request

    def _admit(self) -> None:
        while self.waiting and self.free:
            slot, request = self.free.pop(), self.waiting.pop(0)
            self.running[slot], request.fed = request, 0
            self.states.prompt_len.np[slot] = len(request.prompt)
            self.states.all_token_ids.gpu[slot, : len(request.tokens)] = torch.tensor(request.tokens).int()
            asks = (request.params.extra_args or {}).get("catalogue") is not None
            assert self.processor.add_request(slot, request.params) == asks

    def _leave(self, slot: int) -> Request:
        self.free.append(slot)
        return self.running.pop(slot)

    def step(self) -> bool:
        if len(self.running) > 1 and self.rng.random() < 0.1:  # no room for one of them any more
            self.waiting.append(self._leave(int(self.rng.choice(list(self.running)))))
        self._admit()
        if not self.running:
            return False
        slots = self.rng.permutation(list(self.running)).astype(np.int32)
        requests = [self.running[int(slot)] for slot in slots]
        for request in requests:
            whole = len(request.tokens)
            part = request.fed == 0 and self.rng.random() < 0.3
            request.fed = int(self.rng.integers(1, whole)) if part else whole
        logits = self.logits([request.tokens[: request.fed] for request in requests])
        untouched = logits.clone()
        seen = np.array([request.fed for request in requests])
        mapping = torch.from_numpy(slots)
        context = named(
            CONTEXT,
            expanded_idx_mapping=mapping,
            idx_mapping=mapping,
            idx_mapping_np=slots,
            expanded_local_pos=torch.zeros(len(slots)),
            input_ids=torch.tensor([request.tokens[request.fed - 1] for request in requests]),
            pos=torch.from_numpy(seen - 1),
            seq_lens_upper_bound_np=seen,
        )
        logits = self.processor.apply(logits, context)
        for slot, request, row, before in zip(slots.tolist(), requests, logits, untouched, strict=True):
            if (request.params.extra_args or {}).get("catalogue") is None:
                assert torch.equal(row, before)
            if request.fed < len(request.tokens):  # not read to its end: nothing is drawn
                continue
            self.draw(request, row)
            self.states.all_token_ids.gpu[slot, len(request.tokens) - 1] = request.output[-1]
            if request.finished:
                self._leave(slot)
        return True


class V1Runner(Runner):
    """Rows side by side, and updates of who is where."""

    def __init__(self, processor: BatchRows, *rest: Any) -> None:
        super().__init__(*rest)
        self.processor = processor
        self.rows: list[Request] = []

    def _update(self) -> SimpleNamespace | None:
        """Who is finished or put off leaves; lower rows are filled anew first, then by the last ones; some swap."""
        gone = [row for row, request in enumerate(self.rows) if request.finished]
        if len(self.rows) > 1 and self.rng.random() < 0.1:
            row = int(self.rng.integers(len(self.rows)))
            if row not in gone:
                self.waiting.append(self.rows[row])
                gone = sorted([*gone, row])
        places: list[Request | None] = [None if row in gone else r for row, r in enumerate(self.rows)]
        added, moved = [], []
        while self.waiting and (gone or len(places) < self.slots):
            request = self.waiting.pop(0)
            row = gone.pop(0) if gone else len(places)
            places[row:] = [request, *places[row + 1 :]]
            added.append((row, request.params, request.prompt, request.output))
        while gone and gone[0] < (last := max((i for i, r in enumerate(places) if r), default=-1)):
            places[gone[0]], places[last] = places[last], None
            moved.append((last, gone.pop(0), MoveDirectionality.UNIDIRECTIONAL))
        self.rows = [request for request in places if request is not None]
        if len(self.rows) > 1 and self.rng.random() < 0.3:
            a, b = self.rng.choice(len(self.rows), 2, replace=False).tolist()
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        if not (gone or added or moved):
            return None
        return named(UPDATE, batch_size=len(self.rows), removed=gone[::-1], added=added, moved=moved)

    def step(self) -> bool:
        self.processor.update_state(self._update())
        if not self.rows:
            return False
        logits = self.logits([request.tokens for request in self.rows])
        untouched = logits.clone()
        logits = self.processor.apply(logits)
        for request, row, before in zip(self.rows, logits, untouched, strict=True):
            if (request.params.extra_args or {}).get("catalogue") is None:
                assert torch.equal(row, before)
            self.draw(request, row)
        return True
