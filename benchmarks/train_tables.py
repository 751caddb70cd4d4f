"""The tables and ratios of benchmarks/train.py, from its results file."""

from typing import Any

from train_ladder import STEP
from train_rows import WHAT

from calrec_lite.evaluate.tables import interval_cell

RATIOS = {
    "E_vs_A_targets_ml100k": ("ml100k", "E", "A", "targets_per_second"),
    "E_vs_A_targets_scientific": ("scientific", "E", "A", "targets_per_second"),
    "D_vs_A_rows": ("ml100k", "D", "A", "rows_per_second"),
    "D_vs_A_rows_scientific": ("scientific", "D", "A", "rows_per_second"),
    "D_vs_C_time": ("ml100k", "D", "C", "seconds_a_step"),
    "D_vs_C_time_scientific": ("scientific", "D", "C", "seconds_a_step"),
}
PEAKS = (  # name, and rows with their batches
    ("peak_D_vs_A", ("D", 16), ("A", 16)),
    ("peak_D_vs_A_default", ("D", 16), ("A (TRL's default)", 16)),
    ("peak_256_vs_16", ("E", 256), ("E", 16)),
    ("peak_256_vs_16_D", ("D", 256), ("D", 16)),
    ("peak_256_vs_16_F", ("F", 256), ("F", 16)),
)


def ratios(values: dict[str, Any]) -> dict[str, float]:
    """What the results hold so far, by name, not in NF4. Memory is the peak of the whole process on ML-100K."""
    found: dict[str, float] = {}
    kinds = [
        name for part in ("throughput", "step", "memory") for key in values.get(part, {}) for name in key.split()[1:2]
    ]
    full = "fp32" if "fp32" in kinds and "bf16" not in kinds else "bf16"
    for name, (data, one, other, key) in RATIOS.items():
        rows = values.get("throughput", {}).get(f"{data} {full}", {})
        if one in rows and other in rows:
            found[name] = rows[one][key] / rows[other][key]
    if steps := values.get("step", {}).get(f"ml100k {full}"):
        now, before = (steps[name]["seconds_a_step"] for name in STEP)
        found["step_new_vs_old_checkpointed"] = before / now
    memory = values.get("memory", {})

    def peak(kind: str, row: str, batch: int) -> float | None:
        facts = memory.get(f"ml100k {kind} {row} batch {batch} micro 4")
        return facts and facts["peak_bytes"]

    for name, one, other in PEAKS:
        for kind in ("fp32", "bf16"):  # both of the same dtype; bf16's, where they are there
            peaks = peak(kind, *one), peak(kind, *other)
            if all(peaks):
                found[name] = peaks[0] / peaks[1]
    return found


def table(values: dict[str, Any]) -> str:
    """Everything that was measured, as Markdown."""
    parts = [_throughput(values), _ladder(values), _step(values), _memory(values), _quality(values)]
    parts += [_gpu(values, "gpu"), _gpu(values, "measures")]
    parts += [_compile(values, "away"), _compile(values, "compile")]
    listed = "\n".join(f"- `{name}`: {value:.3g}" for name, value in values.get("ratios", {}).items())
    return "\n\n".join(part for part in [*parts, listed] if part)


def _throughput(values: dict[str, Any]) -> str:
    lines = [
        "| data, base | row | targets/s | rows/s | tokens/s | s a step | peak at micro 4 |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for part, rows in values.get("throughput", {}).items():
        for name, f in rows.items():
            peak = values.get("memory", {}).get(f"{part} {name} batch 16 micro 4")
            shown = f"{peak['peak_bytes'] / 1e9:.2f} GB" if peak else ""
            lines.append(
                f"| {part} | {name}: {WHAT[name]} | {f['targets_per_second']:.2f} | {f['rows_per_second']:.2f} "
                f"| {f['tokens_per_second']:.0f} | {f['seconds_a_step']:.2f} | {shown} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def _ladder(values: dict[str, Any]) -> str:
    lines = ["| data, base | E, but | targets/s | of E's |", "|---|---|--:|--:|"]
    for part, rows in values.get("ladder", {}).items():
        whole = rows["E"]["targets_per_second"]
        for name, f in rows.items():
            share = f["targets_per_second"] / whole
            lines.append(f"| {part} | {name.removeprefix('E: ')} | {f['targets_per_second']:.2f} | {share:.2f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _step(values: dict[str, Any]) -> str:
    lines = ["| data, base | step | s a step |", "|---|---|--:|"]
    for part, rows in values.get("step", {}).items():
        lines += [f"| {part} | {name.removeprefix('E: ')} | {f['seconds_a_step']:.2f} |" for name, f in rows.items()]
    return "\n".join(lines) if len(lines) > 2 else ""


def _memory(values: dict[str, Any]) -> str:
    peak = "peak allocated" if values.get("hardware", {}).get("gpu") else "peak RSS"
    lines = [f"| data, base, row | {peak} | before the first step |", "|---|--:|--:|"]
    for name, f in values.get("memory", {}).items():
        lines.append(f"| {name} | {f['peak_bytes'] / 1e9:.2f} GB | {f['before_first_step'] / 1e9:.2f} GB |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _quality(values: dict[str, Any]) -> str:
    lines = [
        "| minutes of training | row | targets seen | validation nats an item | as trained | NDCG@10 [95%] |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    named = [(*name.split(" "), facts) for name, facts in values.get("quality", {}).items()]
    for row, minutes, f in sorted(named, key=lambda part: (float(part[1]), part[0])):
        as_trained = f if row == "F" else f.get("as_trained")  # F is scored as it was trained
        own = f"{as_trained['nats_per_item']:.2f}" if as_trained else "-"
        lines.append(
            f"| {minutes} | {row} | {f['targets']:,} | {f['nats_per_item']:.2f} | {own} "
            f"| {interval_cell(f['ndcg@10'])} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def _gpu(values: dict[str, Any], which: str) -> str:
    """Real sizes: beside TRL (`gpu`), or with a measure beside without it (`measures`)."""
    lines = ["| base, 4 bits | who | micro | targets/s | tokens/s | peak | MFU |", "|---|---|--:|--:|--:|--:|--:|"]
    systems = [
        (name.partition(" micro")[0], f["micro_batch_size"], who, f)
        for name, part in values.get(which, {}).items()
        for who, f in part.items()
    ]
    order = [base for base, *_ in systems]
    for base, micro, who, f in sorted(systems, key=lambda row: (order.index(row[0]), *row[1:3])):
        mfu = f"{f['mfu']:.0%}" if "mfu" in f else ""
        lines.append(
            f"| {base} | {who} | {micro} | {f['targets'] / f['seconds_a_step']:.1f} | {f['tokens_per_second']:,.0f} "
            f"| {f['peak_bytes'] / 1e9:.2f} GB | {mfu} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def _compile(values: dict[str, Any], which: str) -> str:
    """A small base's step: as it is, with measures taken away, and with compiled layers (`compile`)."""
    lines = ["| base, bf16 | step | ms a step | kernels | ms they run | peak |", "|---|---|--:|--:|--:|--:|"]
    for name, part in values.get(which, {}).items():
        for how, f in part.items():
            if isinstance(f, dict):  # older files have figures of both beside them
                ran = f"{f['kernels']:,} | {1e3 * f['busy_seconds']:.0f}" if "kernels" in f else " | "
                lines.append(
                    f"| {name} | {how} | {1e3 * f['seconds_a_step']:.0f} | {ran} | {f['peak_bytes'] / 1e9:.1f} GB |"
                )
    return "\n".join(lines) if len(lines) > 2 else ""
