"""Token ids: each item's text is tokenised once, histories are concatenations of ids (docs/architecture.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from calrec_lite.errors import InputError
from calrec_lite.recipe import Text
from calrec_lite.text.template import END_OF_ITEM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = np.ndarray  # int64, 1-D


@dataclass(frozen=True)
class Row:
    """One history as a training sequence: start, then for each item its sentence and its text, then end-of-text.

    Attributes:
        tokens: (T,) ids.
        starts, ends: (n,) where each item's text begins and ends (exclusive; the line break is inside).
        items: (n,) catalogue indices.
        domain: name of the domain.
        user: index of the user in the domain; None: a user with no other row in the step.
    """

    tokens: Tokens
    starts: np.ndarray
    ends: np.ndarray
    items: np.ndarray
    domain: str
    user: int | None = None


class Encoder:
    """Turns item texts and histories into ids with one tokenizer and one wording.

    Item texts are tokenised between two copies of the next-item sentence and cut out by character
    offsets, so that the ids are those the tokenizer would give inside a whole history, also where it
    merges a line break into the punctuation before it or puts a mark before the first word.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: Text) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "this base has only a slow tokenizer; calrec-lite needs character offsets (tokenizer.json)"
            )
        if tokenizer.eos_token_id is None:
            raise InputError("this base's tokenizer has no end-of-text token, so that a text could never end")
        self.tokenizer, self.text = tokenizer, text
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.start = np.array([start], np.int64)
        self.end = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end)
        self.first = self._ids(text.first)
        self.next = self._ids(f"{text.next} x{END_OF_ITEM}{text.next}", len(text.next) + 3)
        self.newline = int(self._ids(f"{text.next} x{END_OF_ITEM}", len(text.next) + 2)[-1])

    def within(self, tokens: int) -> "Encoder":
        """This one where its prompts have so few tokens at most, else one that drops more of the oldest items."""
        if self.text.max_history_tokens <= tokens:
            return self
        return Encoder(self.tokenizer, self.text.model_copy(update={"max_history_tokens": tokens}))

    def _ids(self, text: str, start: int = 0) -> Tokens:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return np.array(
            [i for i, (_, end) in zip(*map(encoded.get, ("input_ids", "offset_mapping"))) if end > start], np.int64
        )

    def items(self, texts: Sequence[str], progress: bool = False) -> list[Tokens]:
        """Ids of item texts, the ending line break included; not truncated. `texts` are single lines."""
        before, out = self.text.next, []
        for start in tqdm(range(0, len(texts), 2048), "tokenise items", disable=not progress, unit_scale=2048):
            segments = [f" {t}{END_OF_ITEM}" for t in texts[start : start + 2048]]
            encoded = self.tokenizer(
                [f"{before}{s}{before}" for s in segments], add_special_tokens=False, return_offsets_mapping=True
            )
            for segment, ids, offsets in zip(segments, encoded["input_ids"], encoded["offset_mapping"]):
                low, high = len(before), len(before) + len(segment)
                ends = np.array([e for _, e in offsets])
                out.append(np.array(ids, np.int64)[(ends > low) & (ends <= high)])
        return out

    @cached_property
    def stops(self) -> np.ndarray:
        """Ids that end an item when generated: end-of-text, and every token that holds a line break."""
        names = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        breaks = [i for i, n in enumerate(names) if n and ("\n" in n or "\u010a" in n or n == "<0x0A>")]
        return np.unique([self.end, *breaks])

    def text_of(self, tokens: Sequence[int]) -> str:
        """Generated ids as an item's text: what stands before the first line break, blanks around it left out.

        The token that ended the text belongs to it: many tokenizers merge a last "!" and the line break into one.
        """
        ids = [t for t in tokens if t != self.end]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return text.partition(END_OF_ITEM)[0].strip()

    def limit(self, tokens: list[Tokens]) -> list[Tokens]:
        """Items cut to `max_item_tokens`, still ending in a line break; where cutting would make two equal, uncut."""
        most = self.text.max_item_tokens
        cut = [t if len(t) <= most else np.append(t[: most - 1], self.newline) for t in tokens]
        positions: dict[bytes, list[int]] = {}
        for i, t in enumerate(cut):
            positions.setdefault(t.tobytes(), []).append(i)
        for equal in positions.values():
            for i in equal if len(equal) > 1 else ():
                cut[i] = tokens[i]
        return cut

    def prompt(self, history: Sequence[Tokens]) -> Tokens:
        """Ids of the prompt for a history (oldest first), oldest items dropped whole until it fits."""
        recent = self.recent(history, self.text.max_items - 1)
        pieces = [self.start]
        for i, item in enumerate(recent):
            pieces += [self.next if i else self.first, item]
        return np.concatenate([*pieces, self.next if len(recent) else self.first])

    def recent(self, items: Sequence[Tokens], most: int) -> Sequence[Tokens]:
        """The latest items that fit: `most` of them and `max_history_tokens`, at least one if there is any."""
        room = self.text.max_history_tokens - len(self.start) - len(self.first)
        count = 0
        for item in reversed(items[-most:] if most else []):
            room -= len(item) + len(self.next)
            if room < 0 and count:
                break
            count += 1
        return items[len(items) - count :]

    def row(self, items: np.ndarray, tokens: Sequence[Tokens], domain: str, user: int | None = None) -> Row:
        """A training row of catalogue indices `items` (oldest first), whose last is always a target."""
        texts = [tokens[i] for i in items]
        count = 1 + len(self.recent(texts[:-1], self.text.max_items - 1))
        texts, items = texts[-count:], items[-count:]
        pieces, starts, ends, at = [self.start], [], [], len(self.start)
        for i, item in enumerate(texts):
            sentence = self.next if i else self.first
            pieces += [sentence, item]
            starts.append(at + len(sentence))
            at = starts[-1] + len(item)
            ends.append(at)
        pieces.append(np.array([self.end]))
        return Row(np.concatenate(pieces), np.array(starts), np.array(ends), np.asarray(items), domain, user)


def require_distinct(name: str, texts: Sequence[str], tokens: Sequence[Tokens]) -> None:
    """Raise InputError where two items of the domain `name` cannot be told apart by their ids."""
    seen: dict[bytes, int] = {}
    for i, t in enumerate(tokens):
        first = seen.setdefault(t.tobytes(), i)
        if first != i:
            raise InputError(
                f"domain `{name}`: the tokenizer cannot tell {texts[first]!r} from {texts[i]!r}; "
                "add a field that differs to `fields`"
            )
