"""Run the demo as a user does and keep its table, wall time and peak memory.

python benchmarks/demo.py [--runs FOLDER] [--out benchmarks/results/demo_cpu.json]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from calrec_lite.evaluate.store import versions
from calrec_lite.files import write_json

ROOT = Path(__file__).parents[1]
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # by which an older one is imitated


def cpu_flags() -> list[str]:
    """The processor's vector and matrix instructions, as Linux names them; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "demo_cpu.json")
    options = parser.parse_args()
    if (options.runs / "demo").exists():
        sys.exit(f"{options.runs / 'demo'} is there: a demo that goes on cannot be timed; name another --runs")
    start = time.perf_counter()
    demo = subprocess.run(
        [sys.executable, "-m", "calrec_lite", "demo", "--runs", str(options.runs)], stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - start
    print(demo.stdout)
    if demo.returncode:
        sys.exit(demo.returncode)
    metrics = json.loads((options.runs / "demo" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    write_json(
        options.out,
        {
            **metrics,
            "command": "python benchmarks/demo.py",
            "versions": versions(),
            "minutes": round(seconds / 60, 1),
            "cpu_flags": cpu_flags(),
            "imitated": {name: os.environ[name] for name in LIMITS if name in os.environ},
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            "stages": {
                stage.name: json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
                for stage in sorted((options.runs / "demo").glob("[0-9]-*"))
            },
            "output_end": demo.stdout.replace(f"{ROOT}/", "").splitlines()[-44:],
        },
    )


if __name__ == "__main__":
    main()
