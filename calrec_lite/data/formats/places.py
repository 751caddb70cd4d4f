"""Where the files of a format lie: side by side in a folder, in a zip, or one by its path."""

import fnmatch
import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from calrec_lite.data.faults import shown
from calrec_lite.data.formats.known import READERS
from calrec_lite.data.formats.shapes import ANY, KINDS, File, Format, Layout, plain_name
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import BLOCK, file_sha256


@dataclass(frozen=True)
class Place:
    """A file, or one inside a zip.

    Attributes:
        path: the file or the zip.
        member: its name in the zip.
    """

    path: Path
    member: str | None = None

    @property
    def label(self) -> Path:
        """What it is called in messages."""
        return self.path if self.member is None else self.path / self.member

    def extract(self, folder: Path) -> Path:
        """The file itself; of a zip a copy in `folder`.

        Raises:
            InputError: a damaged or locked zip.
            RunError: it is larger than what the disk has left.
        """
        if self.member is None:
            return self.path
        with _zip(self.path) as archive:
            size, room = archive.getinfo(self.member).file_size, shutil.disk_usage(folder).free
            if size > room:
                raise RunError(
                    f"{shown(self.label)}: {size >> 20:,} MB unpacked, but {folder} has {room >> 20:,} MB left; "
                    "free some, or name another folder by TMPDIR"
                )
            copy = folder / PurePosixPath(self.member).name
            with archive.open(self.member) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, BLOCK)  # no more than `size`: zipfile stops there
        return copy


@dataclass(frozen=True)
class Found:
    """The files of one table, in the order of its layout, and how they make it."""

    layout: Layout
    places: dict[str, Place]  # by the pattern of its name

    def file(self, name: str) -> File:
        """What the layout says of one of them."""
        return next(file for file in self.layout.files if file.name == name)


def find(form: Format, role: str, path: Path, alone: bool = True) -> Found | None:
    """The files of `role` (events or items) at a path; None: a folder or zip has none of them.

    Args:
        alone: whether the path was named for this role, so that a zip's only table is meant, whatever it is called.

    Raises:
        InputError: several could be meant, one is missing, or the zip is damaged.
    """
    layouts = form.events if role == "events" else form.items
    if path.is_file() and path.suffix.lower() != ".zip":
        layout = next((each for each in layouts if _matches(path.name, each.files[0])), None)
        if layout is None:
            return Found(Layout((ANY,)), {ANY.name: Place(path)})
        others = _beside(path) if len(layout.files) > 1 else []
        return _complete(layout, Place(path), others, path)
    places = _inside(path)
    of_items = form.items if role == "events" else ()
    places_of_role = [place for place in places if not any(_matches(place.label.name, o.files[0]) for o in of_items)]
    for layout in layouts:
        if matching := _shallowest([place for place in places_of_role if _matches(place.label.name, layout.files[0])]):
            if len(matching) > 1:
                raise InputError(f"{path}: holds several tables: {_listed(matching)}; name the file that is meant")
            return _complete(layout, matching[0], places, path)
    return Found(Layout((ANY,)), {ANY.name: single(path)}) if path.is_file() and alone else None


def no_table(form: Format, role: str, path: Path) -> InputError:
    """What to say where `find` finds nothing."""
    layouts = form.events if role == "events" else form.items
    names = ", ".join(layout.files[0].name for layout in layouts)
    return InputError(f"{path}: holds none of the reader's tables of {role} ({names or 'none known'}); name a file")


def source_hash(form: Format, path: Path) -> str:
    """SHA-256 (hex) of a file; of a folder, or a file that needs others beside it, of all of them and their names."""
    if path.suffix.lower() == ".zip":
        return file_sha256(path)
    found = [each for role in ("events", "items") if (each := find(form, role, path))]
    if path.is_dir() and not found:
        raise no_table(form, "events", path)
    several = [each for each in found if path.is_dir() or len(each.places) > 1]
    files = {place.path for each in several for place in each.places.values()}
    if not files:
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\n{file_sha256(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def single(path: Path) -> Place:
    """The one table in a zip. Raises InputError if there is none, or more."""
    tables = [place for place in _inside(path) if plain_name(place.label).endswith(tuple(KINDS))]
    if len(tables) != 1:
        held = f"several tables: {_listed(tables)}" if tables else "no table"
        raise InputError(f"{path}: holds {held}; unpack it and name the file, or the `reader` that knows its files")
    return tables[0]


def looks_like(path: Path) -> str | None:
    """The reader whose publisher calls its files as they are called at a path (a file, folder or zip); None: no one.

    Only names are looked at; `signs_of` tells by a file's columns.
    """
    for reader, form in READERS.items():
        named = [
            layout for layout in form.events if "*" not in layout.files[0].name or layout.files[0].name == "*.inter"
        ]
        if path.is_file() and path.suffix.lower() != ".zip":
            if any(_matches(path.name, layout.files[0]) for layout in named):
                return reader
            continue
        places = _inside(path)
        if any(_matches(place.label.name, layout.files[0]) for layout in named for place in places):
            return reader
    return None


def signs_of(columns: Sequence[str]) -> str | None:
    """The reader whose interactions have these columns, and perhaps more; None: none of them."""
    return next((name for name, form in READERS.items() if form.signs and form.signs <= set(columns)), None)


def _matches(name: str, file: File) -> bool:
    return fnmatch.fnmatchcase(plain_name(name), file.name)


def _complete(layout: Layout, first: Place, places: list[Place], path: Path) -> Found:
    """The layout's other files, beside the first."""
    found = {layout.files[0].name: first}
    beside = [place for place in places if place.label.parent == first.label.parent]
    for file in layout.files[1:]:
        matching = [place for place in beside if _matches(place.label.name, file)]
        if len(matching) > 1:
            raise InputError(f"{path}: holds several tables: {_listed(matching)}; leave one of them there")
        if matching:
            found[file.name] = matching[0]
        elif file.required:
            raise InputError(f"{first.label}: needs {file.name} beside it, which is not there")
    return Found(layout, found)


def _shallowest(places: list[Place]) -> list[Place]:
    depths = [len(place.label.parts) for place in places]
    return [place for place, depth in zip(places, depths, strict=True) if depth == min(depths)]


def _inside(path: Path) -> list[Place]:
    """Files of a zip, or of a folder and the folders in it; sorted by name."""
    if path.is_dir():
        files = [*path.iterdir(), *(file for folder in path.iterdir() if folder.is_dir() for file in folder.iterdir())]
        return [Place(file) for file in sorted(files) if file.is_file() and not file.name.startswith(".")]
    with _zip(path) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
    return [
        Place(path, name) for name in names if not name.startswith("__MACOSX/") and PurePosixPath(name).name[0] != "."
    ]


def _beside(path: Path) -> list[Place]:
    return [Place(file) for file in sorted(path.parent.iterdir()) if file.is_file()]


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip, with what is wrong with it in one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: not a sound zip file ({shown(error)}); download it again") from None
    except (RuntimeError, NotImplementedError) as error:  # a password, or a method that Python lacks
        raise InputError(f"{path}: cannot be unpacked ({shown(error)}); unpack it and name the files") from None


def _listed(places: list[Place]) -> str:
    names = [shown(place.label.name if place.member is None else place.member) for place in places]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
