"""A time column has one unit, decided from all of it, and said."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from handmade import histories, write

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare
from calrec_lite.data.report import describe
from calrec_lite.errors import InputError
from calrec_lite.recipe import DomainSpec

DAY = 86400


def timed(folder: Path, times: list[Any], form: str | None = None) -> Domain:
    """One user with an item at each time, in the order of the list."""
    rows = "".join(f"u,i{n},{time},Item {n}\n" for n, time in enumerate(times))
    path = write(folder / "e.csv", "user,item,time,title\n" + rows)
    spec = DomainSpec(interactions=str(path), columns={"time_format": form}, min_user_events=1)
    return prepare("d", spec, 0)


@pytest.mark.parametrize(
    ("times", "form", "days", "words"),
    [
        ([50_000_000_000, 1_600_000_000_000], None, ["1971-08-02", "2020-09-13"], "unix milliseconds"),
        ([1_600_000_000, 1_600_086_400.5], None, ["2020-09-13", "2020-09-14"], "unix seconds"),
        ([1, 2, 3], None, ["1970-01-01"] * 3, "unix seconds"),
        ([1_600_000_000_000_000, 1_600_086_400_000_000], None, ["2020-09-13", "2020-09-14"], "unix microseconds"),
        ([1_600_000_000 * 10**9, 1_600_086_400 * 10**9], None, ["2020-09-13", "2020-09-14"], "unix nanoseconds"),
        ([0, 1_600_000_000_000], None, ["1970-01-01", "2020-09-13"], "unix milliseconds"),
        ([20231231, 20240131], None, ["2023-12-31", "2024-01-31"], "dates as %Y%m%d"),
        (["20231231.0", "", "20240131.0"], None, ["2023-12-31", "2024-01-31"], "dates as %Y%m%d"),
        ([202312312359, 202401010000], None, ["2023-12-31", "2024-01-01"], "dates as %Y%m%d%H%M"),
        ([20231231235959, 20240101000000], None, ["2023-12-31", "2024-01-01"], "dates as %Y%m%d%H%M%S"),
        ([20231231, 20240132], None, ["1970-08-23"] * 2, "unix seconds"),  # no 32nd of January: numbers
        (["2023-12-31", "2024-01-31T10:00:00+02:00"], None, ["2023-12-31", "2024-01-31"], "dates (ISO 8601)"),
        (["31.12.2023", "01.02.2024"], "%d.%m.%Y", ["2023-12-31", "2024-02-01"], "dates as %d.%m.%Y"),
        ([1995, 2001], "%Y", ["1995-01-01", "2001-01-01"], "dates as %Y"),
        ([-DAY, 2_000_000_000], "seconds", ["1969-12-31", "2033-05-18"], "unix seconds"),
        ([1_600_000_000, 1_600_000_000_000], "milliseconds", ["1970-01-19", "2020-09-13"], "unix milliseconds"),
        (["1950-01-01", "2099-01-01"], "iso", ["1950-01-01", "2099-01-01"], "dates (ISO 8601)"),
    ],
)
def test_one_unit_for_a_column(tmp_path: Path, times: list[Any], form: str | None, days: list[str], words: str) -> None:
    domain = timed(tmp_path, times, form)
    assert domain.sequences.times is not None
    assert [str(date(1970, 1, 1) + timedelta(seconds=int(t))) for t in domain.sequences.times] == days
    if days == sorted(set(days)):
        assert histories(domain)["u"] == [f"Item {n}" for n, time in enumerate(times) if time != ""]
    assert domain.info["times"] == words
    assert f"  times           read as {words}\n" in describe(domain)


@pytest.mark.parametrize(
    ("times", "form", "message"),
    [
        (
            [1_600_000_000, 1_600_000_000_000],
            None,
            "row 1: column `time`: `1600000000` is of January 1970 in milliseconds, which the column's largest value "
            "asks for",
        ),
        ([1, "2020-01-01", 2], None, "row 2: column `time`: `2020-01-01` is not as the column's other values, which"),
        (["2020-01-01", 1, "2020-01-01"], None, "row 2: column `time`: `1` is not as the column's other values, which"),
        (
            [1_600_000_000, 1_600_000_000_000_000_000],
            None,
            "row 1: column `time`: `1600000000` is of January 1970 in nanoseconds, which the column's largest value "
            "asks for",
        ),
        ([-5, 1], None, "row 1: column `time`: `-5` is outside 1970 to "),
        ([10**30], None, "row 1: column `time`: `1000000000000000000000000000000` is outside 1970 to "),
        (["2999-12-31", "2020-01-01"], None, "row 1: column `time`: `2999-12-31` is outside 1970 to "),
        (["infinity"], None, "row 1: column `time`: `infinity` is neither unix seconds nor a date"),
        (["1e400"], None, "row 1: column `time`: `1e400` is neither unix seconds nor a date"),
        ([10**15], "seconds", "row 1: column `time`: `1000000000000000` is outside the calendar"),
        (["2020-01-01", "x" * 500], "iso", "row 2: column `time`: `xxxxx"),
        (["2020-01-01"], "%Q", "columns.time_format: `%Q` is no format; write it as in %Y-%m-%d, or one of iso, sec"),
    ],
)
def test_times_that_are_not_of_one_kind_are_refused(
    tmp_path: Path, times: list[Any], form: str | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        timed(tmp_path, times, form)
    said = str(error.value).removeprefix(f"{tmp_path}/e.csv: ")
    assert said.startswith(message)
    assert len(said) < 300
    assert "columns.time_format" in said or "neither" in said


def test_a_format_of_no_column_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "user,item,title\nu,a,Tea\n")
    with pytest.raises(InputError, match="no column `time` for `columns.time`"):
        prepare("d", DomainSpec(interactions=str(path), columns={"time_format": "iso"}), 0)


@pytest.mark.parametrize(
    ("times", "days", "form"),
    [
        (["31.12.2023", "1.2.2024"], ["2023-12-31", "2024-02-01"], "%d.%m.%Y"),
        (["01/02/2024", "01/13/2024"], ["2024-01-02", "2024-01-13"], "%m/%d/%Y"),
        (["01/02/2024", "13/02/2024"], ["2024-02-01", "2024-02-13"], "%d/%m/%Y"),
        (["1/2/2024 1:05 PM", "1/13/2024 9:05 AM"], ["2024-01-02", "2024-01-13"], "%m/%d/%Y %I:%M %p"),
        (["05/05/2024", "06/06/2024"], ["2024-05-05", "2024-06-06"], "%d/%m/%Y"),  # the same either way
        (["May 5, 2024", "May 6, 2024"], ["2024-05-05", "2024-05-06"], "%b %d, %Y"),
        (["09 3, 2014", "10 13, 2014"], ["2014-09-03", "2014-10-13"], "%m %d, %Y"),
        (["Fri Aug 25 20:55:02 -0700 2017"], ["2017-08-26"], "%a %b %d %H:%M:%S %z %Y"),
    ],
)
def test_one_other_style_of_dates_is_seen(tmp_path: Path, times: list[str], days: list[str], form: str) -> None:
    domain = timed(tmp_path, [f'"{time}"' for time in times])
    assert domain.sequences.times is not None
    assert [str(date(1970, 1, 1) + timedelta(seconds=int(t))) for t in domain.sequences.times] == days
    assert domain.info["times"] == f"dates as {form}"


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            ["01/02/2024", "03/02/2024"],
            "row 1: column `time`: `01/02/2024` can be read as `%d/%m/%Y` or `%m/%d/%Y`, and so is the whole column; "
            "say which it is by `columns.time_format`",
        ),
        (
            ["31.12.2023", "2024-01-31"],
            "row 2: column `time`: `2024-01-31` is not written as `31.12.2023` in row 1 (`%d.%m.%Y`): write all dates "
            "in one style, or name one by `columns.time_format` and leave the others out by `on_bad_rows: drop`",
        ),
        (
            ["2024-01-31", "2024-02-01", "31.12.2023"],
            "row 1: column `time`: `2024-01-31` is not written as `31.12.2023` in",
        ),
        (["31.12.2023", "12/31/2023"], "row 2: column `time`: `12/31/2023` is not written as `31.12.2023` in row 1"),
        (["31.12.2023", "1600000000"], "row 2: column `time`: `1600000000` is not written as `31.12.2023` in row 1"),
        (["31.12.23"], "row 1: column `time`: `31.12.23` is neither unix seconds nor a date"),
        (["31.12.1923"], "row 1: column `time`: `31.12.1923` is neither unix seconds nor a date"),
    ],
)
def test_several_styles_are_asked_about(tmp_path: Path, times: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        timed(tmp_path, times)
    assert str(error.value).startswith(f"{tmp_path}/e.csv: {message}")


def test_the_style_of_most_rows_where_others_may_go(tmp_path: Path) -> None:
    days = [f"{n:02}.01.2024" for n in range(1, 29)]
    rows = "".join(f"u,i{n},{day},Item {n}\n" for n, day in enumerate(["soon", "2024-01-01", *days]))
    path = write(tmp_path / "e.csv", "user,item,time,title\n" + rows)
    domain = prepare("d", DomainSpec(interactions=str(path), min_user_events=1, on_bad_rows="drop"), 0)
    assert domain.info["times"] == "dates as %d.%m.%Y"
    assert domain.info["bad_rows"] == {"e.csv": 2}
    assert histories(domain)["u"] == [f"Item {n}" for n in range(2, 30)]
    named = DomainSpec(
        interactions=str(path), min_user_events=1, on_bad_rows="drop", columns={"time_format": "%d.%m.%Y"}
    )
    assert prepare("d", named, 0).fingerprint == domain.fingerprint
