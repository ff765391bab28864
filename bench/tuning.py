"""`make tuning`: what one setting at a time does to CPU, throughput, latency and memory: docs/tuning.md's tables.

Everything else stays at its default. The fast client is used, whose own cost hides least. About 17 minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.cases import inside
from bench.cases.latency import of_rate
from bench.job import PARTITIONS, Job
from bench.processes import between, deployed

_EVENTS, _BURN_IN = 80_000, 0.5
_INSIDE_EVENTS = 24_000
_RATE, _SECONDS = 1_000, 12.0
_CLIENT = "confluent"

SWEEPS: dict[str, tuple[str, tuple[object, ...]]] = {
    "batch": ("batch__max_events", (64, 256, 512, 2_048)),
    "flush": ("state__flush_interval_ms", (20, 100, 500, 2_000)),
    "arena": ("state__arena_accounts", (8_192, 32_768, 131_072)),
    "partitions": ("partitions", (1, 4, 16)),
    "workers": ("workers", (1, 2)),
    "linger": ("batch__linger_ms", (0, 10, 20, 50)),
    "producer-linger": ("kafka__linger_ms", (0, 5, 20)),
    "client": ("kafka__client", ("kafka-python", "confluent")),
}
_LATENCY_TOO = frozenset({"batch", "flush", "linger", "producer-linger", "client", "partitions"})


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"of {', '.join(SWEEPS)}; default all")
    parser.add_argument("--inside", action="store_true", help="batch, flush and arena alone, over in-memory Kafka: CPU")
    options = parser.parse_args()
    if options.inside:
        return _inside(options.sweeps)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="riskstream-tuning-") as folder:
        job = Job(Path(folder))
        for name, (setting, values) in SWEEPS.items():
            if options.sweeps and name not in options.sweeps:
                continue
            print(
                f"\n| {setting.replace('__', '.')} | worker us/event | events/s | memory MiB | p50 ms | p99 ms | "
                f"us/event at {_RATE:,}/s |\n{'| --- ' * 7}|"
            )
            for value in values:
                figures = _throughput(job, setting, value)
                if name in _LATENCY_TOO:
                    given: dict[str, Any] = {"kafka__client": _CLIENT, setting: value}
                    client = str(given.pop("kafka__client"))
                    figures["latency"] = of_rate(job, _RATE, _SECONDS, client, **given)
                found[f"{name} {value}"] = figures
                print(_row(value, figures), flush=True)
    print(json.dumps(found))
    return 0


def _inside(sweeps: list[str]) -> int:
    """CPU of the engine's thread by stage: quick, and little disturbed by what else the machine does."""
    stages = ("load", "fold", "score", "flush")
    with tempfile.TemporaryDirectory(prefix="riskstream-tuning-") as folder:
        job = Job(Path(folder))
        for name in [name for name in ("batch", "flush", "arena") if not sweeps or name in sweeps]:
            setting, values = SWEEPS[name]
            print(f"\n| {setting.replace('__', '.')} | CPU us/event | {' | '.join(stages)} |\n{'| --- ' * 6}|")
            for value in values:
                figures = inside.of_events(job, _INSIDE_EVENTS, **{setting: value})
                cells = [
                    str(value),
                    f"{figures['us_per_event']:.0f}",
                    *(f"{figures['profile'][s]:.0f}" for s in stages),
                ]
                print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def _throughput(job: Job, setting: str, value: object) -> dict[str, Any]:
    """A backlog through one worker or several; the second half counts."""
    settings: dict[str, object] = {"kafka__client": _CLIENT}
    partitions, workers = PARTITIONS, 1
    if setting == "partitions":
        partitions = int(str(value))
    elif setting == "workers":
        workers = int(str(value))
    else:
        settings[setting] = value
    with deployed(job, "tuning", partitions=partitions, **settings) as deployment:
        deployment.publish(job.messages(_EVENTS))
        started = [deployment.worker(number) for number in range(workers)]
        try:
            start = deployment.until(_BURN_IN * _EVENTS, *started)
            end = deployment.until(0.97 * _EVENTS, *started)
            memory = max(worker.metrics().get("process_resident_memory_bytes", 0.0) for worker in started)
            for worker in started:
                worker.finish()
        finally:
            for worker in started:
                worker.__exit__(None, None, None)
    return between(start, end) | {"memory_mib": round(memory / 2**20)}


def _row(value: object, figures: dict[str, Any]) -> str:
    open_loop = figures.get("latency", {})
    latency = [f"{open_loop[name]:.0f}" if open_loop else "" for name in ("p50", "p99", "worker_us")]
    cells = [str(value), f"{figures['worker_us']:.0f}", f"{figures['events_per_s']:,.0f}", str(figures["memory_mib"])]
    return f"| {' | '.join([*cells, *latency])} |"


if __name__ == "__main__":
    sys.exit(main())
