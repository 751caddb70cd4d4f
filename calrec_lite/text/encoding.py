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
from calrec_lite.text.token_lists import TokenLists, Tokens
from calrec_lite.text.trie import Trie

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 80  # characters of a text in an error


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
    merges a line break into the punctuation before it or puts a mark before the first word. A control token's name
    (`<|endoftext|>`) in an item's text is text; in the recipe's own wording it is the token.
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
        ending = self._ids(f"{text.next} x{END_OF_ITEM}", len(text.next) + 2)
        if not len(ending) or ending[-1] == tokenizer.unk_token_id:
            raise InputError("this base's tokenizer does not know the line break, which ends an item's text")
        self.newline = int(ending[-1])

    def within(self, tokens: int) -> "Encoder":
        """This one where its prompts have so few tokens at most, else one that drops more of the oldest items."""
        if self.text.max_history_tokens <= tokens:
            return self
        return Encoder(self.tokenizer, self.text.model_copy(update={"max_history_tokens": tokens}))

    def require_within(self, vocabulary: int, texts: TokenLists) -> None:
        """Raise InputError where the wording or one of the item texts holds an id that the model has no row for."""
        highest = max(int(ids.max(initial=0)) for ids in (*self._wording, texts.flat))
        if highest >= vocabulary:
            raise InputError(
                f"the tokenizer writes token {highest}, and the model knows {vocabulary:,} tokens, from 0: "
                "the two are not of one model"
            )

    def ids_with(self, texts: TokenLists) -> np.ndarray:
        """Distinct ids, ascending, of all that a row or one of the item texts alone may hold, filled up or not."""
        return np.flatnonzero(np.bincount(np.concatenate([*self._wording, texts.flat])))

    @property
    def _wording(self) -> tuple[Tokens, ...]:
        return np.array([self.end, self.pad, self.newline]), self.start, self.first, self.next

    def _ids(self, text: str, start: int = 0) -> Tokens:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return np.array(
            [i for i, (_, end) in zip(*map(encoded.get, ("input_ids", "offset_mapping"))) if end > start], np.int64
        )

    def items(self, texts: Sequence[str], progress: bool = False) -> TokenLists:
        """Ids of item texts, the ending line break included; not truncated. `texts` are single lines."""
        before = self.text.next
        parts: list[Tokens] = []
        lengths: list[int] = []
        bar = tqdm(total=len(texts), desc="tokenise items", unit="item", disable=not progress, leave=False)
        for start in range(0, len(texts), 2048):
            segments = [f" {t}{END_OF_ITEM}" for t in texts[start : start + 2048]]
            encoded = self.tokenizer(
                [f"{before}{s}{before}" for s in segments],
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            for segment, ids, offsets in zip(segments, encoded["input_ids"], encoded["offset_mapping"]):
                low, high = len(before), len(before) + len(segment)
                ends = np.array([e for _, e in offsets])
                tokens = self._without_controls(np.array(ids, np.int64), f"{before}{segment}{before}", offsets)
                inside = tokens[(ends > low) & (ends <= high)]
                parts.append(inside.astype(np.int32))
                lengths.append(len(inside))
            parts[-len(segments) :] = [np.concatenate(parts[-len(segments) :])]
            bar.update(len(segments))
        bar.close()
        return TokenLists.joined(parts, lengths)

    @cached_property
    def _controls(self) -> dict[int, str]:
        """The control tokens' names by their ids."""
        return {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def _is_control(self) -> np.ndarray:
        """(V,) whether an id is a control token's."""
        found = np.zeros(len(self.tokenizer), np.bool_)
        found[list(self._controls)] = True
        return found

    def _without_controls(self, tokens: Tokens, text: str, offsets: Sequence[tuple[int, int]]) -> Tokens:
        """A text's ids with the unknown token where a tokenizer of whole words or pieces found a control token's name
        all the same. Raises InputError where it has none."""
        for n in np.flatnonzero(self._is_control[tokens]).tolist():
            name = self._controls[int(tokens[n])]
            if text[slice(*offsets[n])].strip() == name:  # an unknown word has the unknown token, but not its name
                if self.tokenizer.unk_token_id is None:
                    raise InputError(f"the tokenizer reads {name!r} in an item's text as a control token; leave it out")
                tokens[n] = self.tokenizer.unk_token_id
        return tokens

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

    def limit(self, tokens: Sequence[Tokens]) -> TokenLists:
        """Items cut to `max_item_tokens`, still ending in a line break.

        Where that would make some equal, these keep the first half, and after it stands what tells them apart
        (`_apart`). None is ever longer; `require_distinct` refuses what is equal even so.
        """
        most, whole = self.text.max_item_tokens, TokenLists.of(tokens)
        cut = whole.replaced({i: self._cut(whole[i], most) for i in np.flatnonzero(whole.lengths > most).tolist()})
        alike: set[int] = set()
        while more := set(cut.equal()) - alike:  # an item may be equal to what was cut anew
            alike |= more
            groups: dict[bytes, list[int]] = {}
            for i in sorted(alike):
                groups.setdefault(whole[i][: most // 2].tobytes(), []).append(i)
            changed = {}
            for group in groups.values():
                for i, apart in zip(group, _apart([whole[i] for i in group])):
                    changed[i] = np.append(whole[i][: most // 2], self._cut(apart, most - most // 2))
            cut = cut.replaced(changed)
        return cut

    def _cut(self, tokens: Tokens, most: int) -> Tokens:
        return tokens if len(tokens) <= most else np.append(tokens[: most - 1], self.newline)

    @cached_property
    def longest_prompt(self) -> int:
        """The most tokens a prompt may have: `max_history_tokens`, or the wording and one item where that is more."""
        one = len(self.start) + len(self.first) + len(self.next) + self.text.max_item_tokens
        return max(self.text.max_history_tokens, one)

    @cached_property
    def longest_row(self) -> int:
        """The most tokens a training row may have: a prompt, the target, end-of-text."""
        return self.longest_prompt + self.text.max_item_tokens + 1

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


def _apart(tokens: Sequence[Tokens]) -> list[Tokens]:
    """Of each sequence its tokens at the places where it parts from others, then what follows the last such place.

    Of any two, these begin differently.
    """
    unique = {t.tobytes(): t for t in tokens}
    trie = Trie.build(list(unique.values()))
    ends = {}
    for i, (key, t) in enumerate(unique.items()):
        places = trie.depth[trie.owner[trie.path[trie.path_ptr[i] : trie.path_ptr[i + 1]]]]
        ends[key] = np.append(t[places], t[places[-1] + 1 :]) if len(places) else t
    return [ends[t.tobytes()] for t in tokens]


def require_distinct(name: str, texts: Sequence[str], tokens: TokenLists) -> None:
    """Raise InputError where two items of the domain `name` cannot be told apart by their ids."""
    seen: dict[bytes, int] = {}
    for i in tokens.equal():
        first = seen.setdefault(tokens[i].tobytes(), i)
        if first != i:
            raise InputError(
                f"domain `{name}`: the tokenizer cannot tell {texts[first][:SHOWN]!r} from {texts[i][:SHOWN]!r} in "
                f"{len(tokens[i])} tokens; add a field that differs to `fields`, or raise text.max_item_tokens"
            )
