"""`Recommender`: histories in, ranked lists of real items out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from calrec_lite.data.transitions import Transitions
from calrec_lite.decode.ranked import Ranked
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import atomic_path, work_folder
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.model.device import AskedDType, dtype_here
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.package.hub import check_name, push_folder
from calrec_lite.package.layout import FITTED, open_package, refuse_foreign, with_strategy
from calrec_lite.package.save import copy_package
from calrec_lite.recipe import Base, Recommend
from calrec_lite.recipe.file import with_recommend
from calrec_lite.recommend.batching import batches
from calrec_lite.recommend.fusion import Fusion, require_fitted
from calrec_lite.recommend.lookup import Lookup
from calrec_lite.recommend.strategies import Draw, Strategies, Users
from calrec_lite.recommend.tables import like_table, read_table
from calrec_lite.recommend.vectors import text_vectors
from calrec_lite.text.encoding import Encoder, Tokens

if TYPE_CHECKING:  # it loads PEFT, which takes seconds
    from calrec_lite.method.towers import Towers

Names = Sequence[str]  # titles or item ids
Save = Callable[[Recommend, Path], None]
SHOWN = 5  # names that are not found, of a list of them


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its title, its id in the data, its score and why it is in the list.

    `parts`: where a score is a weighted sum (`fused`, `fast`, `rerank`), what each part adds to it.
    """

    title: str
    item: str
    score: float
    why: str
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)


class Recommender:
    """Recommends items of one catalogue with one model. Use `Recommender.from_pretrained` for an exported folder.

    Args:
        towers: the model; None where `draw` has it.
        encoder: the base's tokenizer with the recipe's wording.
        catalogue: the items.
        ids: each item's id in the data.
        aliases: further ids of the data -> item, where several items were merged into one.
        options: strategy and its numbers.
        seed: of the sampling.
        draw: another engine for `strategy: sample` (`strategies.Draw`).
        transitions: counts of which item followed which, for `strategy: rerank` with `recommend.transitions`.
        save: writes model, items and given options into a new folder, for `save_pretrained`.
        fusion: fitted readings and weights, for `strategy: fused` and `fast`.
        html: whether the data's texts were HTML before `prepare` cleaned them, for names that are written so.
    """

    def __init__(
        self,
        towers: "Towers | None",
        encoder: Encoder,
        catalogue: EncodedCatalogue,
        ids: Sequence[str],
        options: Recommend,
        seed: int = 0,
        aliases: Mapping[str, int] | None = None,
        draw: Draw | None = None,
        transitions: Transitions | None = None,
        save: Save | None = None,
        fusion: Fusion | None = None,
        html: bool = False,
    ) -> None:
        if towers is not None:
            encoder.require_within(len(towers.head), catalogue.tokens)
            # A prompt and an item after it have to fit the model's own length.
            encoder = encoder.within(towers.positions - catalogue.tokens.longest)
        self.encoder, self.catalogue, self.ids = encoder, catalogue, ids
        self.aliases = aliases or {}
        self._save, self._html = save, html
        self.strategies = Strategies(towers, encoder, catalogue, options, seed, draw, transitions, fusion)

    @property
    def options(self) -> Recommend:
        """Strategy and its numbers. For others make another Recommender."""
        return self.strategies.options

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        quantised: bool = False,
        strategy: str | None = None,
        dtype: AskedDType = "auto",
        revision: str | None = None,
        device: str | torch.device | None = None,
        settings: Iterable[str] = (),
    ) -> "Recommender":
        """Open a folder that `calrec-lite export` or `save_pretrained` wrote, or a Hub id of one.

        Args:
            quantised: load in 4 bits.
            strategy: default: the recipe's.
            dtype: number type of weights and products; `auto`: the faster one of this machine, whatever the model was
                trained in.
            revision: branch, tag or commit of a Hub id.
            device: default: the first GPU, or the CPU where there is none.
            settings: of the recipe's section `recommend`, as `--set` takes them: `recommend.beams=50`.

        Raises:
            InputError: if it is no such folder, no such strategy or setting.
        """
        package = open_package(source, revision)
        options = with_recommend(with_strategy(package.options, strategy), settings)
        transitions, fusion, unknown = None, None, np.empty(0, np.int64)
        if options.fits:
            require_fitted(package.folder / FITTED, options.strategy)
        if options.counts_transitions or package.info.collaborative:
            transitions = Transitions.open(package.transitions_file(), package.aliases, len(package.ids))
        encoder = Encoder(load_tokenizer(package.folder), package.text)
        catalogue = package.catalogue(encoder, transitions)
        if options.fits:
            assert transitions is not None
            items = package.ids, catalogue.titles
            fusion, unknown = Fusion.open(package.folder / FITTED, *items, transitions, package.counts)
        towers = None
        if options.strategy != "fast" or len(unknown):
            target_device = None if device is None else torch.device(device)
            chosen = dtype_here(package.folder, dtype, target_device).dtype
            base = Base(model=str(package.folder), dtype=chosen, load_in_4bit=quantised)
            from calrec_lite.method.towers import Towers
            from calrec_lite.model.base import load_model

            towers = Towers(load_model(package.folder, base, where=target_device))
        if fusion is not None and towers is not None and len(unknown):
            added = [catalogue.tokens[i] for i in unknown.tolist()]
            fusion = fusion.with_items(unknown, text_vectors(towers, added, int(encoder.start[0]), encoder.pad))
        return cls(
            towers,
            encoder,
            catalogue,
            package.ids,
            options,
            package.seed,
            package.aliases,
            transitions=transitions,
            save=partial(copy_package, package.folder),
            fusion=fusion,
            html=package.info.html,
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model, tokenizer, items and options as one folder, which `from_pretrained` opens.

        It appears under its name only when it is complete; an earlier one there is replaced.

        Raises:
            InputError: `folder` holds something else; or this recommender's weights are already in some other folder.
        """
        if self._save is None:
            raise InputError(
                "save_pretrained: neither opened from a folder nor made by a trainer; export its run instead"
            )
        to = Path(folder)
        refuse_foreign(to)
        with atomic_path(to) as temporary:
            self._save(self.options, temporary)
        return to

    def push_to_hub(self, repo: str, private: bool = False, revision: str | None = None) -> str:
        """`save_pretrained`, and that folder sent to the Hub as OWNER/NAME; returns its address.

        Raises:
            InputError, RunError: as `package.hub.push_folder`.
        """
        check_name(repo)  # before gigabytes are written
        with work_folder() as work:
            return push_folder(self.save_pretrained(work / "model"), repo, private, revision)

    def recommend(
        self,
        histories: Sequence[Names],
        k: int | None = None,
        progress: bool = False,
        *,
        allow: Names | None = None,
        deny: Names = (),
        candidates: Sequence[Names | None] | None = None,
        strict: bool = False,
        strategy: str | None = None,
    ) -> list[list[Recommendation]]:
        """The `k` items each user is most likely to take next, best first.

        Args:
            histories: for each user titles (or item ids) oldest first. A title the catalogue does not know is
                written into the history as it is: the model reads it, though it cannot recommend it
                (`unknown` names them).
            k: default: the recipe's `recommend.k`. A list is shorter only where fewer items may be recommended.
            allow: recommend none but these. deny: recommend none of these. A title means all items that have it.
            candidates: for each user, recommend none but these; None: no such limit.
            strict: refuse a history with a title that the catalogue does not know.
            strategy: default: the options'. Another one serves as far as what was loaded allows.

        Raises:
            InputError: if the catalogue does not know a name in `allow`, `deny` or `candidates`, or, if `strict`, in a
                history; if there are not as many
                candidates as histories, a history is a text instead of a list of them, k is below 1, or what the
                strategy needs is not loaded.
        """
        if strategy is not None:
            self.strategies.require(strategy)
        k = self.options.k if k is None else k
        if k < 1:
            raise InputError(f"k: {k}; ask for 1 item or more")
        k = min(k, len(self.catalogue))
        for history in (histories, *histories):
            _refuse_text(history, "histories")
        histories = [[self._text_of(name) for name in history] for history in histories]
        known = [[self.find(t) for t in history] for history in histories]
        if strict and (names := self.lookup.unknown(chain.from_iterable(histories))):
            raise InputError(f"histories: {self.not_found(names)}")
        if candidates is not None and len(candidates) != len(histories):
            raise InputError(f"candidates: {len(candidates)} sets for {len(histories)} histories; give one for each")
        limits = [None if c is None else self._indices(c, "candidates") for c in candidates or [None] * len(known)]
        allowed = self._mask(None if allow is None else self._indices(allow, "allow"))
        allowed[self._indices(deny, "deny")] = False
        tokens = [self._tokens(h, n) for h, n in zip(histories, known)]
        texts = [[t if i is None else self.catalogue.texts[i] for t, i in zip(h, n)] for h, n in zip(histories, known)]
        seen = [np.array([i for i in n if i is not None], np.int64) for n in known]
        excluded = seen if self.options.exclude_seen else [s[:0] for s in seen]
        ranked = self._ranked(tokens, texts, seen, allowed, excluded, limits, k, progress, strategy)
        titles = self.catalogue.titles
        return [
            [
                Recommendation(titles[i], self.ids[i], float(s), why, parts)
                for i, s, why, parts in zip(r.items.tolist(), r.scores.tolist(), r.why, r.parts or repeat({}))
            ]
            for r in ranked
        ]

    def recommend_table(self, table: Any, k: int | None = None, progress: bool = False) -> Any:
        """`recommend` for a pandas DataFrame or a `datasets.Dataset`; one of the same kind comes back.

        Args:
            table: a row a user: `history` (or `items`), titles or ids, oldest first; and perhaps `user`.

        Returns:
            A row an item, best first: user, rank (from 1), item, title, score, why.

        Raises:
            InputError: it is no such table, or as `recommend`.
        """
        users, histories, ids = read_table(table)
        texts = [[self._text_of(name, ids) for name in history] for history in histories]
        return like_table(table, users, self.recommend(texts, k, progress))

    def rank(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        """(U, k) items for histories of catalogue indices, best first; -1 where the catalogue is used up."""
        tokens = [[self.catalogue.tokens[i] for i in h] for h in histories]
        texts = [[self.catalogue.texts[i] for i in h] for h in histories]
        known = [np.asarray(h, np.int64) for h in histories]
        excluded = known if exclude_seen else [h[:0] for h in known]
        lists = np.full((len(histories), k), -1, np.int64)
        ranked = self._ranked(tokens, texts, known, self._mask(None), excluded, [None] * len(tokens), k, progress=True)
        for row, ranking in zip(lists, ranked):
            row[: len(ranking.items)] = ranking.items
        return lists

    def user_vectors(self, histories: Sequence[Names]) -> np.ndarray:
        """(U, D) unit vectors v_U of histories, as of `recommend`: what to search a store of item vectors with."""
        texts = [[self._text_of(name) for name in history] for history in histories]
        tokens = [self._tokens(history, [self.find(text) for text in history]) for history in texts]
        return self.strategies.user_vectors([self.encoder.prompt(items) for items in tokens])

    def _text_of(self, name: object, is_id: bool = False) -> str:
        """What is written as a text stays; a number (or anything, with `is_id`) is an id first, and then a title.

        Raises InputError for a text that no tokenizer takes.
        """
        try:
            str(name).encode()
        except UnicodeEncodeError:
            raise InputError(f"{name!r}: not UTF-8, or half a character (a lone surrogate); write it anew") from None
        known = self.lookup.find_id(str(name)) if is_id or not isinstance(name, str) else None
        return str(name) if known is None else self.catalogue.texts[known]

    def find(self, name: str) -> int | None:
        """The item that a whole item text, a title or an id names (`Lookup.find`); None if none does.

        A title of several items means the first of them.
        """
        return self.lookup.find(name)

    def unknown(self, history: Names) -> list[str]:
        """The names in a history that no item of the catalogue has."""
        return self.lookup.unknown(self._text_of(name) for name in history)

    def not_found(self, names: Names) -> str:
        """What is said of names that are `unknown`: the first of them, each with the nearest titles."""
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return f"not in the catalogue: {', '.join(map(self.lookup.described, names[:SHOWN]))}{more}"

    @cached_property
    def lookup(self) -> Lookup:
        """Names to items of this catalogue."""
        return Lookup(self.catalogue.texts, self.catalogue.titles, self.ids, self.aliases, self._html)

    def _indices(self, names: Names, what: str) -> np.ndarray:
        _refuse_text(names, what)
        names = [self._text_of(name) for name in names]
        matches = [self.lookup.all_named(name) for name in names]
        for name, items in zip(names, matches):
            if not items:
                raise InputError(f"{what}: the catalogue has no title or id {self.lookup.described(name)}")
        return np.array([i for items in matches for i in items], np.int64)

    def _mask(self, items: np.ndarray | None) -> np.ndarray:
        """(N,) true for `items`, or for all."""
        mask = np.full(len(self.catalogue), items is None)
        mask[[] if items is None else items] = True
        return mask

    def _tokens(self, history: Sequence[str], known: Sequence[int | None]) -> list[Tokens]:
        unknown = [t for t, i in zip(history, known) if i is None]
        if not unknown:
            return [self.catalogue.tokens[i] for i in known if i is not None]
        encoded = self.encoder.items([" ".join(t.split()) for t in unknown])
        cut = iter([self.encoder.limit([t])[0] for t in encoded])  # one by one: `limit` changes equal ones
        return [next(cut) if i is None else self.catalogue.tokens[i] for i in known]

    def _ranked(
        self,
        tokens: Sequence[Sequence[Tokens]],
        texts: Sequence[Names],
        known: Sequence[np.ndarray],
        open_items: np.ndarray,
        excluded: Sequence[np.ndarray],
        candidates: Sequence[np.ndarray | None],
        k: int,
        progress: bool,
        strategy: str | None = None,
    ) -> list[Ranked]:
        prompts = [self.encoder.prompt(t) for t in tokens]
        ranked: dict[int, Ranked] = {}
        with tqdm(total=len(prompts), desc="recommend", unit="user", disable=not progress) as bar:
            for users in batches(prompts, self.strategies.batch_tokens):
                allowed = np.tile(open_items, (len(users), 1))  # (U, N)
                for row, u in zip(allowed, users):
                    if (user_candidates := candidates[u]) is not None:
                        row &= self._mask(user_candidates)
                    row[excluded[u]] = False
                batch = Users([prompts[u] for u in users], [texts[u] for u in users], [known[u] for u in users])
                with lists_in_memory(len(users), self.strategies.batch_tokens):
                    lists = self.strategies.rank(batch, allowed, k, strategy)
                ranked |= zip(users, lists)
                bar.update(len(users))
        return [ranked[u] for u in range(len(prompts))]


@contextmanager
def lists_in_memory(users: int, tokens: int) -> Iterator[None]:
    """Turns a lack of memory for so many users at once into a RunError that says what to set."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise RunError(
            f"out of memory with {users} users at once: set recommend.batch_tokens lower than {tokens} "
            "(in the recipe; of an export, in calrec.json), ask for fewer items, or load in 4 bits (--4bit)"
        ) from None


def _refuse_text(names: object, what: str) -> None:
    """Python takes a single text for a sequence of letters, and each letter would be read as a title."""
    if isinstance(names, str):
        raise InputError(f"{what}: {names!r} is one text, not a list of titles or ids; write [{names!r}]")
    if not isinstance(names, Iterable):
        raise InputError(f"{what}: {names!r} is not a list of titles or ids; write [{names!r}]")
