"""`python tests/campaign/run.py --inputs 10000 --kills 300 --seed 0 --out benchmarks/results/campaign.json`

Goes on after a stop, as long as the code is the same; a part that is not asked for keeps its figures. `--only N` runs
one input of a seed and shows all it said.
"""

import argparse
import json
import multiprocessing
import shlex
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.campaign.kills import kill_rounds  # noqa: E402
from tests.campaign.mutation import mutations, prepare_process  # noqa: E402
from tests.campaign.outcome import attempt  # noqa: E402
from tests.campaign.state import described_commit  # noqa: E402
from tests.campaign.world import build  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=0, help="run so many mutated inputs")
    parser.add_argument("--kills", type=int, default=0, help="disturb commands so many times at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mended", action="store_true", help="run no more than what earlier code did not do well")
    parser.add_argument("--only", type=int, help="the number of one input to run and show")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "campaign.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "calrec-lite-campaign")
    options = parser.parse_args()
    maker = multiprocessing.get_context("spawn").Process(target=build, args=(options.work,))
    maker.start()  # so that this process computes nothing: what is killed are forks of it
    maker.join()
    world = build(options.work)
    if options.only is not None:
        prepare_process(world)
        print(attempt(world, options.seed, options.only, show=True))
        return
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    measured = results.setdefault("measured", {})  # how and when, a part
    if options.inputs:
        results |= mutations(world, options.seed, options.inputs, options.mended)
        measured["inputs"] = _about(options.seed)
    if options.kills:
        prepare_process(world)
        results |= kill_rounds(world, options.seed, options.kills, options.mended)
        measured["kills"] = _about(options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(f"{json.dumps(results, indent=1, ensure_ascii=False)}\n", encoding="utf-8")


def _about(seed: int) -> dict[str, Any]:
    from calrec_lite.evaluate.store import hardware, versions

    return {
        "command": f"python tests/campaign/run.py {shlex.join(sys.argv[1:])}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
        "commit": described_commit(),
        "seed": seed,
    }


if __name__ == "__main__":
    main()
