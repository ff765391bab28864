"""One worker and two, per wall second; the cost of what publishes and of what audits, apart."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

from bench.job import Job, riskstream
from bench.processes import between, deployed

_EVENTS, _QUICK_EVENTS = 120_000, 40_000
_BURN_IN = 0.4


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    count = _QUICK_EVENTS if quick else _EVENTS
    return {"one": _of(job, 1, count), "two": _of(job, 2, count)}


def _of(job: Job, workers: int, count: int) -> dict[str, Any]:
    with deployed(job, f"workers-{workers}") as deployment:
        publishing = deployment.publish(job.messages(count)) / count * 1e6
        started = [deployment.worker(number) for number in range(workers)]
        try:
            start = deployment.until(_BURN_IN * count, *started)
            end = deployment.until(0.97 * count, *started)
            deployment.until(count, *started)
            for worker in started:
                worker.finish()
        finally:
            for worker in started:
                worker.__exit__(None, None, None)
        used, begun = _children_s(), time.monotonic()
        audit = json.loads(riskstream(["audit", "--json"], deployment.environment).splitlines()[-1])
        audited = {"audit_us": round((_children_s() - used) / count * 1e6, 2), "audit_s": time.monotonic() - begun}
    checked = {name: audit[name] for name in ("identity_holds", "exactly_once")}
    return between(start, end) | {"publish_us": round(publishing, 2)} | audited | checked


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
