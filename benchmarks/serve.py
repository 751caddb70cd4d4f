"""Load a served export: requests a second and waiting times by number of clients, memory over 10,000 requests.

python benchmarks/serve.py runs/demo/export [--out benchmarks/results/serve_cpu.json]

The service runs as a user starts it, in a process of its own; the clients are threads of this one, each with one
connection that it keeps. Histories are of 1 to 8 items drawn by a seed. Every answer is looked at.
"""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.files import write_json
from calrec_lite.package.layout import open_package

ROOT = Path(__file__).parents[1]
CLIENTS = (1, 8, 64)
SECONDS = 60.0  # of each measurement, at least
LEAST = 30  # requests of each measurement, at least
MANY = 10_000
EVERY = 500  # requests between two looks at the memory
K = 10
WRONG: tuple[tuple[str, str | None], ...] = (  # path, body; 4xx and a line each
    ("/recommend", "{"),
    ("/recommend", '{"history": "Heat"}'),
    ("/recommend", '{"history": [], "k": 0}'),
    ("/recommend", '{"history": [], "strategy": "best"}'),
    ("/recommend", '{"history": [{"item": "no such id"}]}'),
    ("/recommend", json.dumps({"history": ["x" * 2_000_000]})),
    ("/similar?item=no%20such%20id", None),
    ("/items?limit=0", None),
    ("/nowhere", None),
)


class Service:
    """`calrec-lite serve` in a process of its own."""

    def __init__(self, export: Path, strategies: list[str], timeout: float) -> None:
        options = [argument for strategy in strategies for argument in ("--strategy", strategy)]
        command = [sys.executable, "-m", "calrec_lite", "serve", str(export), "--port", "0", *options]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--timeout", str(timeout)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self.process.stdout
        lines = [self.process.stdout.readline() for _ in range(2)]
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", lines[1])
        if not address:
            sys.exit("the service did not start")
        self.port, self.seconds_to_start = int(address[1]), time.perf_counter() - start

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        """Computed so far, on all cores: what a shared machine leaves as it is."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def end(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


class Client:
    """One connection, kept; what was answered and how long each answer took."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self.seconds: list[float] = []
        self.statuses: dict[int, int] = {}
        self.wrong = 0

    def ask(self, path: str, body: str | None) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        self.connection.request("GET" if body is None else "POST", path, body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read().decode()

    def recommend(self, history: list[str], strategy: str) -> None:
        request = {"history": [{"item": item} for item in history], "k": K, "strategy": strategy}
        start = time.perf_counter()
        status, said = self.ask("/recommend", json.dumps(request))
        self.seconds.append(time.perf_counter() - start)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            listed = [item["item"] for item in json.loads(said)["items"]]
            self.wrong += len(set(listed)) != K or bool(set(listed) & set(history))


def load(service: Service, histories: list[list[str]], strategy: str, clients: int, stop: Any) -> dict[str, Any]:
    """Ask with so many clients at once until `stop(asked)` says so."""
    taken, lock = iter(range(len(histories))), threading.Lock()
    opened = [Client(service.port) for _ in range(clients)]
    start, computed = time.perf_counter(), service.cpu_seconds()

    def work(client: Client) -> None:
        while True:
            with lock:
                n = next(taken, None)
            if n is None or stop(n):
                return
            client.recommend(histories[n], strategy)

    threads = [threading.Thread(target=work, args=(client,)) for client in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    waited = np.array([s for client in opened for s in client.seconds])
    statuses: dict[str, int] = {}
    for client in opened:
        client.connection.close()
        for status, count in client.statuses.items():
            statuses[str(status)] = statuses.get(str(status), 0) + count
    return {
        "clients": clients,
        "requests": len(waited),
        "requests_per_second": round(len(waited) / seconds, 2),
        "cpu_ms_per_request": round(1000 * (service.cpu_seconds() - computed) / len(waited), 2),
        "p50_ms": round(1000 * float(np.percentile(waited, 50)), 1),
        "p99_ms": round(1000 * float(np.percentile(waited, 99)), 1),
        "statuses": statuses,
        "wrong_lists": sum(client.wrong for client in opened),
    }


def measured(service: Service, histories: list[list[str]], strategy: str, seconds: float) -> list[dict[str, Any]]:
    """One row for each number of clients."""
    load(service, histories[:4], strategy, 1, lambda n: False)  # what is done once is done
    rows = []
    for clients in CLIENTS:
        end = time.perf_counter() + seconds
        least = max(LEAST, 2 * clients)
        row = load(service, histories, strategy, clients, lambda n, end=end, least=least: n >= least and _over(end))
        rows.append({"strategy": strategy, **row})
        print(rows[-1], flush=True)
    return rows


def _over(end: float) -> bool:
    return time.perf_counter() > end


def memory(service: Service, histories: list[list[str]], strategy: str, requests: int) -> dict[str, Any]:
    """Resident memory while 8 clients ask `requests` times; `growth_bytes`: from the first tenth to the end."""
    bytes_at, parts = [service.memory()], []
    for at in range(0, requests, EVERY):
        parts.append(load(service, histories[at : at + min(EVERY, requests - at)], strategy, 8, lambda n: False))
        bytes_at.append(service.memory())
    first = max(1, len(parts) // 10)
    return {
        "strategy": strategy,
        "requests": sum(part["requests"] for part in parts),
        "answered": sum(part["statuses"].get("200", 0) for part in parts),
        "wrong_lists": sum(part["wrong_lists"] for part in parts),
        "every_requests": EVERY,
        "bytes": bytes_at,
        "growth_bytes": bytes_at[-1] - bytes_at[first],
    }


def refusals(service: Service) -> list[dict[str, Any]]:
    """What wrong requests are answered."""
    said = []
    for path, body in WRONG:
        status, text = Client(service.port).ask(path, body)
        said.append({"path": path, "body": (body or "")[:60], "status": status, "answer": text[:200]})
        if not 400 <= status < 500 or "\n" in text.strip():
            sys.exit(f"a wrong request was answered {status}: {text[:300]}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--strategy", action="append", help="default: fused, fast and beam")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--requests", type=int, default=MANY, help="of the look at the memory")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "serve_cpu.json")
    options = parser.parse_args()
    package = open_package(options.export)
    random = np.random.default_rng(0)
    drawn = (random.choice(len(package.ids), random.integers(1, 9), replace=False) for _ in range(100_000))
    histories = [[package.ids[i] for i in items] for items in drawn]
    strategies = options.strategy or ["fused", "fast", "beam"]
    service = Service(options.export, strategies, timeout=600)
    began = os.getloadavg()
    rows = [row for strategy in strategies for row in measured(service, histories, strategy, options.seconds)]
    light = "fast" if "fast" in strategies else strategies[0]
    result = {
        "command": f"python benchmarks/serve.py {options.export.name}",
        "model": json.loads((options.export / "config.json").read_text(encoding="utf-8")).get("model_type"),
        "parameters_bytes": sum(file.stat().st_size for file in options.export.glob("*.safetensors")),
        "domain": package.info.domain,
        "items": len(package.ids),
        "k": K,
        "rerank": package.options.rerank,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load_average": {"before": began, "after_rows": os.getloadavg()},
        "note": options.note,
        "seconds_to_start": round(service.seconds_to_start, 1),
        "rows": rows,
        "wrong_requests": refusals(service),
        "memory": memory(service, histories, light, options.requests),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
    }
    result["exit_code"] = service.end()
    write_json(options.out, result)
    lost = [row for row in rows if set(row["statuses"]) != {"200"} or row["wrong_lists"]]
    print({**result["memory"], "bytes": f"{result['memory']['bytes'][0]} ... {result['memory']['bytes'][-1]}"})
    if lost or result["exit_code"] or result["memory"]["answered"] != options.requests:
        sys.exit(f"something was lost: {lost}")


if __name__ == "__main__":
    main()
