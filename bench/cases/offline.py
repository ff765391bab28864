"""`riskstream score` over a history file, one core: events per CPU second of the whole command."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

from bench.cases.model import around, unit
from bench.job import Job, riskstream
from stream.cli.history_file import write_history

_EVENTS, _QUICK_EVENTS = 1_000_000, 60_000


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    file = job.folder / "history.parquet"
    mapping = write_history(job.events(_QUICK_EVENTS if quick else _EVENTS), file)
    before = unit(job, repeats=3)
    started, used = time.monotonic(), _children_s()
    out = job.folder / "scores.parquet"
    arguments = ["score", str(file), "--mapping", str(mapping), "--out", str(out), "--partitions", "1", "--json"]
    document = json.loads(riskstream(arguments, job.scoring).splitlines()[-1])
    cpu, wall = _children_s() - used, time.monotonic() - started
    return {
        "events": document["events"],
        "alerts": document["alerts"],
        "events_per_cpu_s": round(document["events"] / cpu, 1),
        "us_per_event": round(cpu / document["events"] * 1e6, 2),
        "events_per_s": round(document["events"] / wall, 1),
        "wall_s": round(wall, 2),
        "model_events_per_cpu_s": round(around(job, before), 1),
    }


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
