"""Which moments a time column means: one unit or format for the whole column, decided from all of it."""

from dataclasses import dataclass
from datetime import datetime, timezone

import duckdb

from calrec_lite.data.bad_rows import KEPT, BadRows
from calrec_lite.data.faults import shown
from calrec_lite.data.styles import STYLES, ambiguous, best, mixed
from calrec_lite.data.tables import Table, literal
from calrec_lite.errors import InputError

UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}  # of them in a second
TRIED = 20  # odd values among which one of a known style is looked for, where the others may be left out
SEQUENCE = "places in an order, no dates"
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


def read_as(
    connection: duckdb.DuckDBPyConnection, table: Table, column: str, form: str | None, bad: BadRows | None = None
) -> Times:
    """Decide how the column `said` of the table `source` (with the number of its row as `line`) is to be read.

    Args:
        column: its name in the file, for messages.
        form: `columns.time_format` of the recipe; None: decided here, and then only for 1970 to the end of next year.
        bad: takes the rows whose time cannot be read, which then leave `source`; None: they are errors.

    Raises:
        InputError: a value that cannot be read so, values of two kinds, a style that leaves open which number is the
            month, or a moment out of range.
    """
    reading = _Column(connection, table, column, bad)
    rows = int(reading._one("count(*)")[0]) if bad else 0
    times = reading.read_as(form)
    if bad:
        bad.check(table.path, rows)
    return times


class _Column:
    def __init__(self, connection: duckdb.DuckDBPyConnection, table: Table, column: str, bad: BadRows | None) -> None:
        self.connection, self.table, self.column, self.bad = connection, table, column, bad
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
                f"iso, {', '.join(UNITS)}, sequence"
            ) from None
        self._refuse(f"{times.seconds} NOT BETWEEN {EARLIEST} AND {LATEST}", "outside the calendar; " + REMEDY)
        return times

    def _decided(self) -> Times:
        numbers, dates, given = self._one(f"count({NUMBER}), count({DATE}), count(*) FILTER (trim(said) <> '')")
        styled = self._styled() if numbers + dates < given and (not self.bad or given > 2 * (numbers + dates)) else None
        if styled:
            return self._checked(styled)
        self._refuse(f"{NUMBER} IS NULL AND {DATE} IS NULL", "neither unix seconds nor a date")
        if numbers and dates:
            rare, others = (NUMBER, "dates") if numbers <= dates else (DATE, "numbers")
            self._refuse(f"{rare} IS NOT NULL", f"not as the column's other values, which are {others}; {REMEDY}")
        form = "iso"
        if numbers > dates if self.bad else numbers > 0:
            # Where outliers may go, they do not decide the unit.
            ends = f"quantile_disc({NUMBER}, [0.05, 0.5])" if self.bad else f"[min({NUMBER}), max({NUMBER})]"
            low, high = self._ends(ends)
            form = self._compact(low, high) or next((u for u, n in UNITS.items() if high < self.end * n), "nanoseconds")
        return self._checked(form)

    def _checked(self, form: str) -> Times:
        times = _by_form(form)
        for smaller in (n for n in UNITS.values() if n < UNITS.get(form, 0)):
            self._refuse_smaller_unit(form, smaller)
        outside = f"coalesce({times.seconds}, -1) NOT BETWEEN 0 AND {self.end - 1}"
        years = f"1970 to {datetime.fromtimestamp(self.end - 1, timezone.utc).year}"
        self._refuse(outside, f"outside {years}, read as {times.words}; {REMEDY}")
        return times

    def _ends(self, ends: str) -> tuple[float, float]:
        low, high = self.connection.execute(f"SELECT {ends} FROM source").fetchall()[0][0]
        return low, high

    def _styled(self) -> str | None:
        """The style of the column's dates if they are not ISO's; None: the first odd value is of none that is known."""
        odd = self.connection.execute(
            f"SELECT line, said FROM source WHERE trim(said) <> '' AND {NUMBER} IS NULL AND {DATE} IS NULL "
            f"ORDER BY line LIMIT {TRIED if self.bad else 1}"
        ).fetchall()
        row, value, forms = next(((*each, forms) for each in odd if (forms := self._forms(each[1]))), (0, "", []))
        if not forms:
            return None
        counts = dict(
            zip(forms, map(int, self._one(", ".join(f"count({_parsed(form)})" for form in forms))), strict=True)
        )
        chosen = best(counts, self._same)
        if len(chosen) > 1:
            raise InputError(
                f"{self.table.path}: row {row}: column `{shown(self.column)}`: `{shown(value)}` can be "
                + ambiguous(value, chosen)
            )
        self._refuse(f"{_parsed(chosen[0])} IS NULL", mixed(chosen[0], value, row))
        return chosen[0]

    def _forms(self, value: str) -> list[str]:
        """The styles that read one value."""
        moments = (_parsed(form).replace("trim(said)", "$1") for form in STYLES)
        reads = ", ".join(f"coalesce(epoch({moment}) BETWEEN 0 AND {self.end - 1}, false)" for moment in moments)
        found = self.connection.execute(f"SELECT {reads}", [value.strip()]).fetchall()[0]
        return [form for form, read in zip(STYLES, found, strict=True) if read]

    def _same(self, form: str, other: str) -> bool:
        return not self._one(f"count(*) FILTER ({_parsed(form)} IS DISTINCT FROM {_parsed(other)})")[0]

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
        """Rows of which this is true are errors, or leave `source`."""
        wrong = self.connection.execute(
            f"SELECT line, said FROM source WHERE trim(said) <> '' AND {condition} ORDER BY line LIMIT "
            f"{KEPT if self.bad else 1}"
        ).fetchall()
        if wrong and self.bad is None:
            line, value = wrong[0]
            raise InputError(
                f"{self.table.path}: row {line}: column `{shown(self.column)}`: `{shown(value)}` is {what}"
            )
        if wrong and self.bad:
            for line, value in wrong:
                self.bad.add(self.table.path, line, f"column {self.column}: {what}", value, "row")
            before = self._one("count(*)")[0]
            self.connection.execute(
                f"CREATE TABLE kept AS SELECT * FROM source WHERE (trim(said) <> '' AND {condition}) IS NOT TRUE;"
                "DROP TABLE source; ALTER TABLE kept RENAME TO source"
            )
            self.bad.count(self.table.path, int(before - self._one("count(*)")[0]) - len(wrong))


def _parsed(form: str) -> str:
    return f"CAST(try_strptime({DIGITS if form in COMPACT else 'trim(said)'}, {literal(form)}) AS TIMESTAMPTZ)"


def _by_form(form: str) -> Times:
    if form in UNITS:
        n = UNITS[form]
        exact = f"{NUMBER} * {10**6 // n}" if n <= 10**6 else f"{NUMBER} / {n // 10**6}"
        return Times(_floor(NUMBER if n == 1 else f"{NUMBER} / {n}"), _floor(exact), f"unix {form}")
    if form == "sequence":
        return Times(_floor(NUMBER), _floor(f"{NUMBER} * 1000000"), SEQUENCE)
    moment = DATE if form == "iso" else _parsed(form)
    words = "dates (ISO 8601)" if form == "iso" else f"dates as {form}"
    return Times(f"CAST(floor(epoch({moment})) AS BIGINT)", f"epoch_us({moment})", words)


def _floor(number: str) -> str:
    return f"TRY_CAST(floor({number}) AS BIGINT)"
