"""What a prepared domain holds, in numbers and in words."""

from datetime import datetime, timezone
from typing import Any

import numpy as np

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.data.doubts import doubts_in_words, one_day
from calrec_lite.data.faults import shown

CASES = ("validation", "test")


def statistics(catalogue: Catalogue, sequences: Sequences, dated: bool = True) -> dict[str, Any]:
    """Counts, lengths in events, and shares: of repeats, of tied times and of users whose events are of one day (None
    without times), the time span (UTC).

    Args:
        dated: whether times are dates; if they are places in an order, there is no span.
    """
    lengths = np.diff(sequences.offsets)
    tested, targets = sequences.held_out("test")
    distinct, same, neighbours = _neighbourhood(catalogue, sequences)
    out: dict[str, Any] = {
        "users": len(sequences),
        "items": len(catalogue),
        "events": len(sequences.items),
        "users_with_a_test_case": len(tested),
        "users_with_a_validation_case": len(sequences.held_out("validation")[0]),
        "training_events": int(sequences.train_lengths.sum()),
        "length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 2),
            "max": int(lengths.max()),
        },
        "repeats": round(1 - distinct / len(sequences.items), 4),
        "tied_neighbours": None,
        "tied_test_targets": None,
        "first": None,
        "last": None,
        "one_day": one_day(sequences) if dated else None,
    }
    if sequences.times is not None:
        tied = sequences.tied(tested, targets)
        out["tied_neighbours"] = round(same / neighbours, 4) if neighbours else 0.0
        out["tied_test_targets"] = round(float(tied.mean()), 4) if tied is not None and len(tied) else 0.0
        if dated:
            out["first"], out["last"] = _date(sequences.times.min()), _date(sequences.times.max())
    return out


def _neighbourhood(catalogue: Catalogue, sequences: Sequences) -> tuple[int, int, int]:
    """Pairs of a user and an item, pairs of neighbouring events at one time, and all pairs of neighbouring events."""
    distinct = same = 0
    for part in sequences.parts():
        bounds = sequences.offsets[part.start : part.stop + 1]
        events = slice(bounds[0], bounds[-1])
        owners = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        distinct += len(np.unique(owners * len(catalogue) + sequences.items[events]))
        if sequences.times is not None:
            same += int(((np.diff(sequences.times[events]) == 0) & (np.diff(owners) == 0)).sum())
    has_events = int((np.diff(sequences.offsets) > 0).sum())
    return distinct, same, len(sequences.items) - has_events


def summary(domain: Domain) -> str:
    """One line of what a domain holds."""
    numbers = domain.info["statistics"]
    counts = ", ".join(f"{_n(numbers[what])} {what}" for what in ("users", "items", "events"))
    span = f", {numbers['first']} to {numbers['last']}" if numbers["first"] else ""
    cases = ", ".join(f"{_n(numbers[f'users_with_a_{split}_case'])} users for {split}" for split in CASES)
    return f"{domain.name}: {counts}{span}; {_n(numbers['training_events'])} events to train on, {cases}"


def describe(domain: Domain) -> str:
    """A short report for people: what was read, what was dropped and why, what is left."""
    info, numbers = domain.info, domain.info["statistics"]
    timed = numbers["tied_neighbours"] is not None
    span = ", ordered, no dates" if timed else ", no times"
    if numbers["first"]:
        span = f", {numbers['first']} to {numbers['last']}"
    counts = ", ".join(f"{_n(numbers[what])} {what}" for what in ("users", "items", "events"))
    lines = [
        f"{domain.name}: {counts}{span}",
        f"  read            {_n(info['read']['rows'])} rows, {_n(info['read']['item_records'])} item records"
        f" ({_n(info['read']['duplicate_item_records'])} of them repeat an item)",
    ]
    if info.get("times"):
        lines.append(f"  times           read as {info['times']}")
    for name, n in info.get("bad_rows", {}).items():
        lines.append(f"  left out        {_n(n):>11} rows of {shown(name)} that cannot be read (bad_rows.jsonl)")
    for reason, drops in info["dropped"].items():
        if drops["events"]:
            others = "".join(f", {_n(n)} {what}" for what, n in drops.items() if what != "events")
            lines.append(f"  dropped         {_n(drops['events']):>11} events: {reason}{others}")
    for label, n in info["junk_values"].items():
        lines.append(
            f"  emptied         {_n(n):>11} values of {label} that were no text but markup, scripts or fillers"
        )
        lines += _changes(info.get("emptied", {}).get(label))
    for what, tally in info.get("repairs", {}).items():
        lines.append(f"  repaired        {_n(tally['values']):>11} values: {what}")
        lines += _changes(tally)
    if apart := info.get("kept_apart", {}).get("values"):
        lines.append(f"  kept apart      {_n(apart):>11} items that the repair would have made equal stay as written")
        lines += _changes(info["kept_apart"])
    for label, share in info["labels_left_out"].items():
        lines.append(f"  left out        {label}: only {share:.1%} of the items have it")
    if info["merged_items"]:
        lines.append(f"  merged          {_n(info['merged_items']):>11} items into others with the same text")
    if alike := info.get("worded_alike", {}).get("values"):
        lines.append(
            f"  worded alike    {_n(alike):>11} of these texts; another `text.missing` or `text.field` keeps them apart"
        )
        lines += _changes(info["worded_alike"])
    least, median, mean, most = (numbers["length"][key] for key in ("min", "median", "mean", "max"))
    lines.append(f"  events a user   {least} to {_n(most)}, median {median:g}, mean {mean:g}")
    lines.append(f"  held out        by {domain.holdout}; {_n(numbers['training_events'])} events are for training")
    cases = (f"{_n(numbers[f'users_with_a_{split}_case'])} for {split}" for split in CASES)
    lines.append(f"  cases           {', '.join(cases)}")
    lines.append(f"  repeats         {numbers['repeats']:.1%} of the events are of an item the user had before")
    if timed:
        lines.append(
            f"  equal times     {numbers['tied_neighbours']:.1%} of neighbouring events, "
            f"{numbers['tied_test_targets']:.1%} of test targets with another event"
        )
    lines += [f"  look at         {doubt}" for doubt in doubts_in_words(info)]
    lines.append(f"  item text       {', '.join(info['labels'])}; such as: {_example(domain)}")
    lines.append(f"  fingerprint     {domain.fingerprint[:16]}")
    return "\n".join(lines)


def _example(domain: Domain) -> str:
    fields = domain.catalogue.fields[len(domain.catalogue) // 2]
    text = ", ".join(f"{label}: {value}" for label, value in fields.items())
    return text if len(text) <= 100 else text[:97] + "..."


def _changes(tally: dict[str, Any] | None) -> list[str]:
    """Up to three values before and after."""
    pairs = tally["examples"] if tally else []
    return [f"                              `{shown(before)}` -> `{shown(after)}`" for before, after in pairs]


def _n(number: int) -> str:
    return f"{number:,}"


def _date(seconds: np.int64) -> str:
    try:
        return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):  # beyond the calendar: such times only order events
        return str(int(seconds))
