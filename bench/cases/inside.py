"""The engine inside this process, in-memory Kafka and real Redis: quick, and steady enough to show a regression."""

from __future__ import annotations

import time
from typing import Any

from bench.cases.model import around, unit
from bench.inside import InsideEngine
from bench.job import Job
from stream.metrics import STAGES
from stream.stack import RedisServer

_EVENTS, _QUICK_EVENTS = 60_000, 24_000


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    return of_events(job, _QUICK_EVENTS if quick else _EVENTS)


def of_events(job: Job, count: int, **settings: object) -> dict[str, Any]:
    """The first half brings the rows into memory, the second counts. CPU of the engine's thread."""
    before = unit(job, repeats=3)
    with RedisServer(job.folder / f"inside-{time.monotonic_ns()}") as redis:
        engine = InsideEngine(job, redis, **settings)
        events = job.events(count)
        engine.publish(events.take(slice(0, count // 2)))
        engine.run()
        engine.publish(events.take(slice(count // 2, count)))
        stages, started = engine.stages(), time.thread_time()
        engine.run()
        used, after = time.thread_time() - started, engine.stages()
    counted = count - count // 2
    return {
        "events": counted,
        "events_per_cpu_s": round(counted / used, 1),
        "us_per_event": round(used / counted * 1e6, 2),
        "model_events_per_cpu_s": round(around(job, before), 1),
        "profile": {name: round((after[name] - stages[name]) / counted * 1e6, 1) for name in STAGES},
    }
