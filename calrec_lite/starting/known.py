"""Whether a reader of the recipe's knows a file by itself: its publisher's format."""

from pathlib import Path

from calrec_lite.data.formats.known import READERS
from calrec_lite.data.formats.places import signs_of
from calrec_lite.data.prepare import database
from calrec_lite.data.readers import read
from calrec_lite.errors import InputError, RunError
from calrec_lite.recipe import DomainSpec
from calrec_lite.starting.looking import Looked
from calrec_lite.starting.names import GENERAL, squeezed


def known_reader(events: Path, items: Path | None, looked: list[Looked]) -> str | None:
    """The reader that reads the files without being told any column; None: none but `table`, if that.

    One that only asks for names that anybody might give a column (`user_id`, `item_id`, `title`) is not taken: what it
    tidies may not be in the file.

    Args:
        looked: the files as tables; empty where they are none that `table` could read.
    """
    here = {name for one in looked for name in one.columns}
    peculiar = {reader: _peculiar(reader, here) for reader in READERS if reader != "table"}
    able = [reader for reader, names in peculiar.items() if names or not looked]
    signed = signs_of(list(looked[0].columns)) if looked else None
    for reader in sorted(able, key=lambda reader: (reader != signed, -len(peculiar[reader]))):
        if _reads(DomainSpec.model_validate({"reader": reader, "interactions": "any"}), events, items):
            return reader
    return None


def _peculiar(reader: str, here: set[str]) -> set[str]:
    """Columns of these files that the reader looks for, and that are not called so elsewhere."""
    names = READERS[reader]
    wanted = [names.user, names.item, names.time, *names.fields.values()]
    return {name for group in wanted for name in group if name in here and squeezed(name) not in GENERAL}


def _reads(spec: DomainSpec, events: Path, items: Path | None) -> bool:
    try:
        with database() as (connection, folder):
            read(connection, folder, spec, events, items)
    except (InputError, RunError):
        return False
    return True
