"""A catalogue's tokens and its trie, made once: those of a large one are kept, and mapped into memory."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import tokenizers

from calrec_lite.claim import claimed_file
from calrec_lite.errors import InputError
from calrec_lite.files import atomic_path, cache_folder
from calrec_lite.stored import MANIFEST, require_unchanged, write_manifest
from calrec_lite.text.encoding import Encoder, require_distinct
from calrec_lite.text.token_lists import TokenLists
from calrec_lite.text.trie import Trie

NAME = "tokenised"  # the folder beside a catalogue
FEW = 10_000  # items that are tokenised as soon as read
BATCH = 1 << 14  # texts hashed at once
CATALOGUES = 16  # that stay in the user's cache, the latest used
FORMAT = 1  # of the files, and of how texts are tokenised: another number, and what is kept is made anew
_ARRAYS = ("key", "ids", "ids_ptr", *(field.name for field in fields(Trie)))


@dataclass(frozen=True)
class Tokenised:
    """Ids of a catalogue's texts, distinct, none a prefix of another, and the trie over them."""

    tokens: TokenLists
    trie: Trie

    @classmethod
    def of(
        cls, name: str, texts: Sequence[str], encoder: Encoder, progress: bool = False, beside: Path | None = None
    ) -> "Tokenised":
        """Tokenised now, or as this tokenizer read the same texts before, where they are many.

        Args:
            name: the domain.
            beside: folder of the catalogue, where they are kept; None, or where nobody writes: the user's cache.

        Raises:
            InputError: two items cannot be told apart by their ids, or one is the beginning of another.
        """
        if len(texts) <= FEW:
            return cls._made(name, texts, encoder, progress)
        key = _key(texts, encoder)
        places = [cache_folder() / "catalogues" / key.tobytes().hex()]
        places[:0] = [] if beside is None else [beside / NAME]
        for place in places:
            if kept := _read(place, key):
                return kept
        made = None
        for place in places:
            with suppress(OSError):  # nobody writes there, or the disk is full
                with claimed_file(place, wait=True):
                    if kept := _read(place, key):  # another process may just have made it
                        return kept
                    made = made or cls._made(name, texts, encoder, progress)
                    _write(place, key, made)
                return made
        return made or cls._made(name, texts, encoder, progress)

    @classmethod
    def _made(cls, name: str, texts: Sequence[str], encoder: Encoder, progress: bool) -> "Tokenised":
        try:
            tokens = encoder.limit(encoder.items(texts, progress))
            require_distinct(name, texts, tokens)
            return cls(tokens, Trie.build(tokens))
        except ValueError as error:  # a tokenizer without a sign of its own for the end of every text
            fault = f"domain `{name}`: {error}; this base's tokenizer does not suit these items"
            raise InputError(fault) from None


def _key(texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """(32,) bytes: SHA-256 of all that decides the ids."""
    digest = hashlib.sha256(encoder.tokenizer.backend_tokenizer.to_str().encode())
    text = encoder.text
    digest.update(repr((FORMAT, tokenizers.__version__, text.next, text.max_item_tokens, len(texts))).encode())
    for start in range(0, len(texts), BATCH):
        digest.update("\n".join(["", *texts[start : start + BATCH]]).encode())
    return np.frombuffer(digest.digest(), np.uint8)


def _read(place: Path, key: np.ndarray) -> Tokenised | None:
    """What lies at a place, if it is of this key and as it was written."""
    try:
        found = {name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="c")) for name in _ARRAYS}
        if not np.array_equal(found.pop("key"), key) or not (place / MANIFEST).is_file():
            return None
        require_unchanged(place)
        with suppress(OSError):
            os.utime(place / MANIFEST)  # used now
    except (OSError, ValueError, InputError):  # not there, or damaged
        return None
    return Tokenised(TokenLists(found.pop("ids"), found.pop("ids_ptr")), Trie(**found))


def _write(place: Path, key: np.ndarray, made: Tokenised) -> None:
    with atomic_path(place) as temporary:
        temporary.mkdir()
        arrays = {"key": key, "ids": made.tokens.flat, "ids_ptr": made.tokens.ptr}
        for name in _ARRAYS:
            np.save(temporary / f"{name}.npy", arrays[name] if name in arrays else getattr(made.trie, name))
        write_manifest(temporary, ["*.npy"])
    if place.name != NAME:
        kept = sorted(place.parent.glob(f"*/{MANIFEST}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in kept[CATALOGUES:]:
            shutil.rmtree(old.parent, ignore_errors=True)
