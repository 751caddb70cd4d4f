"""`calrec.json`: what a model folder must carry beside the weights so that it can recommend."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import Field, NonNegativeInt, ValidationError

from calrec_lite.data.domain import Catalogue
from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.files import BESIDE_WEIGHTS, size_and_time
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.recipe import Recommend, Section, Share, Text
from calrec_lite.sources import snapshot
from calrec_lite.stored import MANIFEST, require_unchanged, write_manifest
from calrec_lite.text.encoding import Encoder
from calrec_lite.text.tokenised import FEW

NAME = "calrec.json"
CATALOGUE = "catalogue.jsonl"
TRANSITIONS = "transitions.parquet"
FITTED = "fitted"  # folder of what `strategy: fused` and `fast` were fitted to
KEPT = (  # what nobody edits: settings, weights of lists, catalogue and card are the user's
    *("*.safetensors", "*config.json", "*.index.json", "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja"),
    *("special_tokens_map.json", "added_tokens.json", TRANSITIONS, "[0-9]_*/*"),
    *(f"{FITTED}/*.parquet", f"{FITTED}/*.safetensors"),
)
FINGERPRINTED = (NAME, CATALOGUE, TRANSITIONS, f"{FITTED}/*", "config.json", "tokenizer.json", "model*.safetensors")


class PackageInfo(Section):
    """The content of calrec.json."""

    format: Literal[1] = 1
    domain: str
    fingerprint: str = Field(description="of the prepared domain")
    labels: list[str] = Field(description="attributes of an item's text, in order")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(description="in which it was trained and measured")
    text: Text
    recommend: Recommend
    prior: Share = Field(description="weight of the items' log training counts in their logits")
    logit_scale: float = Field(1.0, gt=0, le=1e3, description="of the LM head's logits, to which these are added")
    collaborative: Share = Field(0.0, description="weight of a user's transitions beside the counts in `prior`")
    seed: int = Field(ge=0, lt=2**32)
    html: bool = Field(False, description="the data's texts were HTML, which `prepare` turned into plain ones")


class Line(Section):
    """A line of catalogue.jsonl."""

    id: str
    fields: dict[str, str]
    count: NonNegativeInt = Field(0, lt=2**40, description="how often the item was trained on; 0 for a new one")
    also: list[str] = Field([], description="ids of further items of the same text")


@dataclass(frozen=True)
class Package:
    """An opened model folder. What is computed of its items is kept `beside` them; None: in the user's cache."""

    folder: Path
    info: PackageInfo
    ids: list[str]
    fields: list[dict[str, str]]
    counts: np.ndarray
    aliases: dict[str, int]
    beside: Path | None = None

    @property
    def text(self) -> Text:
        return self.info.text

    @property
    def options(self) -> Recommend:
        return self.info.recommend

    @property
    def seed(self) -> int:
        return self.info.seed

    def transitions_file(self) -> Path:
        """The file of counts of which item followed which. Raises InputError if it is not there."""
        file = self.folder / TRANSITIONS
        if not file.is_file():
            needed = f"`recommend` in {NAME} needs it: export again, or set another one"
            if self.info.collaborative:
                needed = "the model was trained with it: export again"
            raise InputError(f"{file}: not there, and {needed}")
        return file

    def catalogue(self, encoder: Encoder, transitions: Transitions | None = None) -> EncodedCatalogue:
        """The items, tokenised; `transitions` are those of the file, where items are to be scored."""
        items = Catalogue(self.ids, self.fields, self.aliases)
        info = self.info
        labels = info.labels  # not the labels found in the lines: a new label would change every item's text
        return encode_catalogue(
            info.domain,
            items,
            encoder,
            self.counts,
            info.prior,
            info.logit_scale,
            labels=labels,
            collaborative=info.collaborative,
            transitions=transitions if info.collaborative else None,
            progress=len(self.ids) > FEW,
            beside=self.beside,
        )


def write_info(folder: Path, info: PackageInfo) -> None:
    """Write calrec.json into `folder`."""
    (folder / NAME).write_text(json.dumps(info.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def write_package(folder: Path, info: PackageInfo, catalogue: Catalogue | None, counts: np.ndarray) -> None:
    """Write calrec.json into `folder` and, if given, the catalogue: an item a line, id, fields, count, merged ids."""
    write_info(folder, info)
    if catalogue is not None:
        with (folder / CATALOGUE).open("w", encoding="utf-8") as file:
            merged: dict[int, list[str]] = {}
            for alias, index in catalogue.aliases.items():
                merged.setdefault(index, []).append(alias)
            for i, (item, fields, count) in enumerate(zip(catalogue.ids, catalogue.fields, counts.tolist())):
                other_ids = [alias for alias in merged.get(i, []) if alias != item]
                entry = {"id": item, "fields": fields, "count": count, **({"also": other_ids} if other_ids else {})}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def record(folder: Path) -> None:
    """Note the finished folder's files, sizes and hashes, which `open_package` compares."""
    write_manifest(folder, KEPT)


def refuse_foreign(to: Path) -> None:
    """Raise InputError where a new export would replace something else than an earlier one."""
    if Path.cwd().is_relative_to(to.resolve()):
        raise InputError(f"{to}: is or holds the folder you are in; name another one")
    if to.is_dir() and any(to.iterdir()) and not (to / NAME).is_file():
        raise InputError(f"{to}: is there and is no earlier export; name another folder")


def locate(source: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or the downloaded files of a Hub id. Raises InputError if there is neither."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    files = ["*.safetensors", "*.jsonl", TRANSITIONS, f"{FITTED}/*", "README.md", *BESIDE_WEIGHTS]
    return snapshot(str(source), "model", files, revision=revision)


def with_strategy(options: Recommend, strategy: str | None) -> Recommend:
    """The options with another strategy; None: as they are. Raises InputError for one that is not known."""
    known = get_args(Recommend.model_fields["strategy"].annotation)
    if strategy is not None and strategy not in known:
        raise InputError(f"--strategy {strategy}: write one of {', '.join(known)}")
    return options if strategy is None else options.model_copy(update={"strategy": strategy})


def fingerprint(folder: Path) -> str:
    """Changes when the folder's weights, tokenizer, catalogue or options are written anew; reads none of them."""
    files = sorted(f for name in FINGERPRINTED for f in folder.glob(name))
    stats = [(f.name, *size_and_time(f)) for f in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def open_package(source: str | Path, revision: str | None = None) -> Package:
    """Open a local folder or download a Hub id.

    Raises:
        InputError: if it is not there, or not written by `calrec-lite export`, a file of it is another now than was
            written, or a line of its catalogue is no item.
    """
    folder = locate(source, revision)
    info = read_info(folder, str(source))
    beside = folder if Path(source).is_dir() else None
    if beside:  # of a downloaded one the Hub's client has compared what it got
        remedy = f"export or download it again; if the change is yours, remove {MANIFEST}"
        require_unchanged(folder, remedy=remedy, whole=False)
    return _read_catalogue(folder, info, beside)


def read_info(folder: Path, name: str) -> PackageInfo:
    """The calrec.json of a folder that can recommend; its weights are not looked at.

    Args:
        name: of the folder in messages.

    Raises:
        InputError: it is no such folder.
    """
    try:
        info = PackageInfo.model_validate_json((folder / NAME).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{name}: no {NAME} in it; name a folder that `calrec-lite export` wrote") from None
    except ValueError as error:
        raise InputError(f"{folder / NAME}: {_first(error)}; written by another version?") from None
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{name}: an adapter alone; export without --adapter to recommend from it")
    if not (folder / CATALOGUE).is_file():
        raise InputError(f"{name}: exported without its catalogue (export.catalogue: false), so it cannot recommend")
    return info


def fields_of(folder: Path, items: Collection[str]) -> dict[str, dict[str, str]]:
    """Item id -> its fields, of some of an opened folder's items: read anew, as nothing keeps those of all."""
    with (folder / CATALOGUE).open(encoding="utf-8-sig", newline="\n") as lines:
        entries = (json.loads(line) for line in lines if not line.isspace())
        return {entry["id"]: entry["fields"] for entry in entries if entry["id"] in items}


def _first(error: ValueError) -> str:
    """What is wrong first, and with which key; not the value, which is foreign."""
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    first = error.errors(include_input=False)[0]
    key = [str(part) for part in first["loc"] if part != "constrained-int"]  # pydantic's name of "or a number"
    return f"`{'.'.join(key)}`: {first['msg']}" if key else str(first["msg"])


def _read_catalogue(folder: Path, info: PackageInfo, beside: Path | None) -> Package:
    """With the items of catalogue.jsonl, to which a user may have added some. Raises InputError that names the line."""
    file, known, also = folder / CATALOGUE, dict[str, int](), dict[str, int]()
    fields: list[dict[str, str]] = []
    counts: list[int] = []
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:  # titles may hold what other line ends are made of
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                try:
                    item = _parse_line(line, info.labels)
                    if known.setdefault(item.id, len(fields)) < len(fields):
                        fault = f"a second item of id `{item.id}`; give it another, or leave out one of both lines"
                        raise ValueError(fault)
                    fields.append(_known_fields(item, info.labels))
                except ValueError as error:
                    raise InputError(f"{file}:{number}: {error}") from None
                also |= dict.fromkeys(item.also, len(counts))
                counts.append(item.count)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error}); save it as UTF-8") from None
    if not fields:
        raise InputError(f"{file}: names no item; export again")
    return Package(folder, info, list(known), fields, np.array(counts, np.int64), also | known, beside)


def _parse_line(line: str, labels: Sequence[str]) -> Line:
    """An item from its line. Raises ValueError that says how to correct it."""
    try:
        return Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"`{'.'.join(map(str, first['loc']))}`: " if first["loc"] else ""
        example = '{"id": ..., "fields": {label: text}, "count": 0}'
        raise ValueError(f"{where}{first['msg']}; write {example} with labels of: {', '.join(labels)}") from None


def _known_fields(item: Line, labels: Sequence[str]) -> dict[str, str]:
    """What an item's text is written of. Raises ValueError that says how to correct it."""
    for label, value in item.fields.items():
        if label not in labels:
            raise ValueError(f"the model knows no label `{label}`; use {', '.join(labels)}, or leave it out")
        if "\n" in value:
            raise ValueError(f"`{label}` holds a line break, which ends an item; write it in one line")
    known_fields = {label: item.fields[label] for label in labels if item.fields.get(label, "").strip()}
    if not known_fields:
        raise ValueError(f"`fields` says nothing of item `{item.id}`; write one of: {', '.join(labels)}")
    return known_fields
