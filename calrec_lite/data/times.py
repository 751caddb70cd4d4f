"""Which moments a time column means: one unit or format for the whole column, decided from all of it."""

from dataclasses import dataclass
from datetime import datetime, timezone

import duckdb

from calrec_lite.data.faults import shown
from calrec_lite.data.tables import Table, literal
from calrec_lite.errors import InputError

UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}  # of them in a second
COMPACT = ("%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S")  # dates as numbers: 20240131
EARLIEST, LATEST = -62_135_596_800, 253_402_300_799  # seconds of the years 1 to 9999
LOWEST = (
    10**8
)  # 1973: what would be later than this in a smaller unit, and is January 1970 in a larger one, is doubtful
NUMBER = "CASE WHEN isfinite(TRY_CAST(said AS DOUBLE)) THEN TRY_CAST(said AS DOUBLE) END"
DATE = "CASE WHEN isfinite(TRY_CAST(said AS TIMESTAMPTZ)) THEN TRY_CAST(said AS TIMESTAMPTZ) END"
DIGITS = f"CAST(TRY_CAST({NUMBER} AS BIGINT) AS VARCHAR)"  # a column with gaps may read as 20240131.0
REMEDY = "mend it, or name the column's unit or format by `columns.time_format`"


@dataclass(frozen=True)
class Times:
    """How a column is read: SQL for seconds and microseconds (BIGINT) from a text `said`, and what it is in words."""

    seconds: str
    microseconds: str
    words: str


def read_as(connection: duckdb.DuckDBPyConnection, table: Table, column: str, form: str | None) -> Times:
    """Decide how the column `said` of the table `source` (with the number of its row as `line`) is to be read.

    Args:
        column: its name in the file, for messages.
        form: `columns.time_format` of the recipe; None: decided here, and then only for 1970 to the end of next year.

    Raises:
        InputError: a value that cannot be read so, values of two kinds, or a moment out of range.
    """
    return _Column(connection, table, column).read_as(form)


class _Column:
    def __init__(self, connection: duckdb.DuckDBPyConnection, table: Table, column: str) -> None:
        self.connection, self.table, self.column = connection, table, column
        self.end = int(datetime(datetime.now(timezone.utc).year + 2, 1, 1, tzinfo=timezone.utc).timestamp())

    def read_as(self, form: str | None) -> Times:
        if form is None:
            return self._decided()
        times = _by_form(form)
        what = f"not of columns.time_format `{shown(form)}`"
        try:
            self._refuse(f"{times.seconds} IS NULL", what)
        except duckdb.InvalidInputException:
            raise InputError(
                f"columns.time_format: `{shown(form)}` is no format; write it as in %Y-%m-%d, or one of "
                f"iso, {', '.join(UNITS)}"
            ) from None
        self._refuse(f"{times.seconds} NOT BETWEEN {EARLIEST} AND {LATEST}", "outside the calendar; " + REMEDY)
        return times

    def _decided(self) -> Times:
        numbers, dates, low, high = self._one(f"count({NUMBER}), count({DATE}), min({NUMBER}), max({NUMBER})")
        self._refuse(f"{NUMBER} IS NULL AND {DATE} IS NULL", "neither unix seconds nor a date")
        if numbers and dates:
            rare, others = (NUMBER, "dates") if numbers <= dates else (DATE, "numbers")
            self._refuse(f"{rare} IS NOT NULL", f"not as the column's other values, which are {others}; {REMEDY}")
        form = "iso"
        if numbers:
            form = self._compact(low, high) or next((u for u, n in UNITS.items() if high < self.end * n), "nanoseconds")
        times = _by_form(form)
        if form in UNITS and UNITS[form] > 1:
            self._refuse_smaller_unit(form, UNITS[form] // 1000)
        outside = f"coalesce({times.seconds}, -1) NOT BETWEEN 0 AND {self.end - 1}"
        years = f"1970 to {datetime.fromtimestamp(self.end - 1, timezone.utc).year}"
        self._refuse(outside, f"outside {years}, read as {times.words}; {REMEDY}")
        return times

    def _refuse_smaller_unit(self, form: str, smaller: int) -> None:
        """Seconds among milliseconds would be of January 1970."""
        self._refuse(
            f"{NUMBER} >= {LOWEST * smaller} AND {NUMBER} < {self.end * smaller}",
            f"of January 1970 in {form}, which the column's largest value asks for; {REMEDY}",
        )

    def _compact(self, low: float, high: float) -> str | None:
        last_year = datetime.fromtimestamp(self.end - 1, timezone.utc).year
        for form in COMPACT:
            zeros = 10 ** (len(datetime.now().strftime(form)) - 4)
            if 1970 * zeros <= low and high < (last_year + 1) * zeros:
                wrong = f"{NUMBER} IS NOT NULL AND ({NUMBER} <> floor({NUMBER}) OR {_parsed(form)} IS NULL)"
                return None if self._one(f"count(*) FILTER ({wrong})")[0] else form
        return None

    def _one(self, what: str) -> tuple[float, ...]:
        row: tuple[float, ...] = self.connection.execute(f"SELECT {what} FROM source").fetchall()[0]
        return row

    def _refuse(self, condition: str, what: str) -> None:
        wrong = self.connection.execute(
            f"SELECT line, said FROM source WHERE trim(said) <> '' AND {condition} ORDER BY line LIMIT 1"
        ).fetchall()
        if wrong:
            line, value = wrong[0]
            raise InputError(
                f"{self.table.path}: row {line}: column `{shown(self.column)}`: `{shown(value)}` is {what}"
            )


def _parsed(form: str) -> str:
    return f"CAST(try_strptime({DIGITS if form in COMPACT else 'trim(said)'}, {literal(form)}) AS TIMESTAMPTZ)"


def _by_form(form: str) -> Times:
    if form in UNITS:
        n = UNITS[form]
        exact = f"{NUMBER} * {10**6 // n}" if n <= 10**6 else f"{NUMBER} / {n // 10**6}"
        return Times(_floor(NUMBER if n == 1 else f"{NUMBER} / {n}"), _floor(exact), f"unix {form}")
    moment = DATE if form == "iso" else _parsed(form)
    words = "dates (ISO 8601)" if form == "iso" else f"dates as {form}"
    return Times(f"CAST(floor(epoch({moment})) AS BIGINT)", f"epoch_us({moment})", words)


def _floor(number: str) -> str:
    return f"TRY_CAST(floor({number}) AS BIGINT)"
