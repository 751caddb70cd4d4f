"""Any file as plain text that DuckDB reads: unpacked, in UTF-8, JSON where Python's own spelling stood.

What is plain already stays where it is; all else becomes a copy in the folder for temporary files.
"""

import ast
import codecs
import json
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from calrec_lite.data.bad_rows import BadRows
from calrec_lite.data.faults import open_bytes, shown
from calrec_lite.data.formats.places import Place, single
from calrec_lite.errors import InputError
from calrec_lite.files import BLOCK

LONGEST_LITERAL = 1 << 21  # bytes of a line in Python's spelling: a parsed one takes some hundred times as much
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")


def refuse_spreadsheet(path: Path) -> None:
    """Raise InputError, with the remedy, if the name is a spreadsheet's."""
    if path.suffix.lower() in SPREADSHEETS:
        raise InputError(
            f"{path}: is a spreadsheet, not a table of text; open it and save the sheet as CSV (UTF-8), "
            "with one header line, and name that file"
        )


def unpacked(place: Place, folder: Path) -> Path:
    """The file out of its zip, and out of zstd; gzip stays, DuckDB reads it.

    Raises:
        InputError: it is damaged.
    """
    path = place.extract(_new(folder))
    if path.suffix.lower() == ".zip":  # in another zip, as Kaggle packs them
        path = single(path).extract(_new(folder))
    return _without_zstd(path, place.label, folder) if path.suffix.lower() == ".zst" else path


def in_utf8(path: Path, shown_as: Path, folder: Path, encoding: str | None, fallback: str | None) -> Path:
    """The file in UTF-8: a byte order mark says what it is in, else `encoding`; else UTF-8, or `fallback` if it is not.

    Raises:
        InputError: the file is not in that encoding.
    """
    with open_bytes(path) as file:
        start = file.read(3)
    if start.startswith(UTF16):
        encoding = "utf-16"
    elif start == codecs.BOM_UTF8:
        encoding = None
    elif encoding is None and fallback and not _is_utf8(path):
        encoding = fallback
    elif encoding == "utf-16":  # without a mark: most texts begin with a character below 256
        encoding = "utf-16-be" if start.startswith(b"\0") else "utf-16-le"
    if encoding in (None, "utf-8"):
        return path
    copy = _new(folder) / path.name.removesuffix(".gz")
    decoder = codecs.getincrementaldecoder(str(encoding))()
    try:
        with open_bytes(path) as source, copy.open("wb") as target:
            while part := source.read(BLOCK):
                target.write(decoder.decode(part).encode())
            target.write(decoder.decode(b"", final=True).encode())
    except UnicodeError as error:
        raise InputError(
            f"{shown_as}: is not in {encoding} ({shown(error)}); name its encoding by `encoding`"
        ) from None
    return copy


def in_json(path: Path, shown_as: Path, folder: Path, bad: BadRows | None) -> Path:
    """JSON lines of a file whose lines are dicts as Python prints them; any other file as it is.

    `ast.literal_eval` reads values only: nothing in such a line is run.

    Raises:
        InputError: a line is no dict of plain values, and bad rows are not left out.
    """
    with open_bytes(path) as file:
        if not _is_python(file):
            return path
    copy = _new(folder) / path.name.removesuffix(".gz")
    number = 0
    with open_bytes(path) as source, copy.open("wb") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of backslashes in texts
        while line := source.readline(LONGEST_LITERAL + 1):
            number += 1
            try:
                target.write(_as_json(line) if line.strip() else b"\n")
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
                reason = f"malformed Python dict: {_reason(error)}"
                if bad is None:
                    raise InputError(f"{shown_as}:{number}: {reason}") from None
                bad.add(shown_as, number, reason, line)
                while line and not line.endswith(b"\n"):  # the rest of one that is too long
                    line = source.readline(LONGEST_LITERAL)
    if bad:
        bad.check(shown_as, number)
    return copy


def _reason(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return shown(error.msg)
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    if isinstance(error, MemoryError | RecursionError):
        return "nested too deep"
    known = isinstance(error, ValueError) and "malformed node" not in str(error)
    return shown(error) if known else "a value that is no text, number, list or dict"


def _as_json(line: bytes) -> bytes:
    if len(line) > LONGEST_LITERAL:
        raise ValueError(f"a line of more than {LONGEST_LITERAL >> 20} MB")
    value = _value(line.decode().strip())
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("each line must be one dict with texts as keys")
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _value(text: str) -> Any:
    if text.startswith('{"'):  # Python's as well, where a key holds a single quote
        with suppress(ValueError):
            return json.loads(text)
    return ast.literal_eval(text)


def _is_python(file: IO[bytes]) -> bool:
    """By the first key: Python prefers single quotes, and JSON has none; `u` stood before the texts of Python 2."""
    start = file.read(200).lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"{") and start[1:].lstrip(b" ").startswith((b"'", b"u'", b'u"'))


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_bytes(path) as file:
        try:
            while part := file.read(BLOCK):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _without_zstd(path: Path, shown_as: Path, folder: Path) -> Path:
    copy = _new(folder) / path.name[: -len(".zst")]
    try:
        with pa.input_stream(str(path), compression="zstd") as source, copy.open("wb") as target:
            while part := source.read(BLOCK):
                target.write(part)
    except OSError as error:
        if error.errno is not None:  # the disk's fault, not the file's
            raise
        raise InputError(f"{shown_as}: not a sound zstd file ({shown(error)}); download it again") from None
    return copy


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))
