"""Token ids of many texts in one flat array: an array of its own for each takes more memory than the ids in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

Tokens = np.ndarray  # int64, 1-D


class TokenLists(Sequence[Tokens]):
    """Lists of token ids; list i is `flat[ptr[i] : ptr[i + 1]]`, given as int64.

    Args:
        flat: int32, (T,).
        ptr: int64, (N + 1,).
    """

    def __init__(self, flat: np.ndarray, ptr: np.ndarray) -> None:
        self.flat, self.ptr = flat, ptr

    @classmethod
    def of(cls, lists: "Sequence[Tokens] | TokenLists") -> "TokenLists":
        """The same lists, flat."""
        if isinstance(lists, TokenLists):
            return lists
        return cls.joined([np.concatenate([np.empty(0, np.int32), *lists], dtype=np.int32)], [len(t) for t in lists])

    @classmethod
    def joined(cls, parts: Sequence[np.ndarray], lengths: Iterable[int]) -> "TokenLists":
        """Of parts of `flat`, one after the other, and the lengths of the lists in them."""
        ptr = np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))])
        return cls(np.concatenate([np.empty(0, np.int32), *parts]), ptr)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) ids of each list."""
        return np.diff(self.ptr)

    @property
    def longest(self) -> int:
        """Ids of the longest list; 0 where there is none."""
        return int(self.lengths.max(initial=0))

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> "TokenLists": ...
    def __getitem__(self, index: int | slice) -> "Tokens | TokenLists":
        if isinstance(index, slice):
            return TokenLists.of([self[i] for i in range(len(self))[index]])
        i = range(len(self))[index]
        return self.flat[self.ptr[i] : self.ptr[i + 1]].astype(np.int64)

    def keys(self) -> Iterator[bytes]:
        """Each list as bytes, which are in order as the lists are."""
        raw, ends = self.flat.astype(">u4").tobytes(), (4 * self.ptr).tolist()
        return (raw[a:b] for a, b in pairwise(ends))

    def replaced(self, changes: Mapping[int, Tokens]) -> "TokenLists":
        """These lists with others in some places."""
        if not changes:
            return self
        lengths, parts, at = self.lengths, [], 0
        for i, tokens in sorted(changes.items()):
            parts += [self.flat[self.ptr[at] : self.ptr[i]], tokens.astype(np.int32)]
            lengths[i], at = len(tokens), i + 1
        return TokenLists.joined([*parts, self.flat[self.ptr[at] :]], lengths)

    def equal(self) -> list[int]:
        """Those that are equal to another one, ascending."""
        hashes = np.fromiter(map(hash, self.keys()), np.int64, len(self))
        _, which, count = np.unique(hashes, return_inverse=True, return_counts=True)
        positions: dict[bytes, list[int]] = {}
        for i in np.flatnonzero(count[which] > 1).tolist():  # few, and nearly all of them are
            positions.setdefault(self[i].tobytes(), []).append(i)
        return sorted(i for equal in positions.values() if len(equal) > 1 for i in equal)
