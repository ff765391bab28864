"""`make bench`: every case, or those named. Results as JSON in bench/results, a table, and JSON as the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import report
from bench.cases import accounts, engine, inside, latency, model, offline, restore, rivals, state, train, workers
from bench.job import Job
from stream import __version__
from stream.stack.kafka import KAFKA_VERSION

RESULTS = Path(__file__).resolve().parent / "results"

CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "model": model.run,
    "offline": offline.run,
    "inside": inside.run,
    "engine-fast": engine.run_fast,
    "engine": engine.run,
    "quix": rivals.run_quix,
    "tutorial": rivals.run_tutorial,
    "latency": latency.run,
    "accounts": accounts.run,
    "state": state.run,
    "workers": workers.run,
    "restore": restore.run,
    "train": train.run,
}
"""In the order in which they run. The names are fixed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one or more of: {', '.join(CASES)}; default all")
    parser.add_argument("--quick", action="store_true", help="small: to see that it runs, and for coarse ratios")
    parser.add_argument("--out", type=Path, help="the result file; default: bench/results/DATE.json")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are: {', '.join(CASES)}")
    chosen = options.cases or list(CASES)
    path: Path = options.out or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {}
    # After each case, so that a run that is cut short leaves what it has.
    for document in documents(chosen, quick=options.quick):
        path.write_text(json.dumps(document, indent=1) + "\n")
    report.print_tables(document, colour=sys.stdout.isatty())
    print(f"\nwritten to {path}")
    print(json.dumps({name: value for name, value in document.items() if name != "versions"}))
    return 0


def measure(names: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Runs the cases and returns the whole document."""
    *_, last = documents(names, quick=quick)
    return last


def documents(names: Sequence[str], *, quick: bool) -> Iterator[dict[str, Any]]:
    """Runs the cases one after the other, on servers of their own; the document so far after each."""
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "versions": _versions(),
        "machine": _machine(),
        "cases": {},
    }
    with tempfile.TemporaryDirectory(prefix="riskstream-bench-") as folder:
        job = Job(Path(folder))
        _ = job.model
        for name, case in CASES.items():
            if name not in names:
                continue
            started = time.monotonic()
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            document["cases"][name] = case(job, quick=quick)
            print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            document["ratios"] = report.ratios(document["cases"])
            document["latency_ms"] = report.latencies(document["cases"])
            yield document


def _versions() -> dict[str, str]:
    packages = ("kafka-python", "confluent-kafka", "quixstreams", "redis", "torch", "numpy", "pydantic", "orjson")
    return {
        "riskstream": __version__,
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        **{name: version(name) for name in packages},
    }


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
