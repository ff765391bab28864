"""CPU of a worker per event over more and more accounts with one size of arena, uniform and Zipf."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.job import SEED, Job
from bench.processes import WorkerProcess, between, deployed

SIZES = (10_000, 100_000, 1_000_000, 3_000_000)
ARENA = 16_384
_EVENTS = {"zipf": 60_000, "uniform": 80_000}
_QUICK_EVENTS = 30_000
_BURN_IN = 0.6
_ZIPF, _ZIPF_SHIFT = 1.5, 50
"""Account k gets a share that goes with (k + 50)^-1.5: no account is more than 1 % of the events, and of three
million the arena's 16,384 hottest make 95 %."""


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    """Every size by both laws; of uniform accounts from the second size on most are not in memory."""
    found: dict[str, Any] = {}
    for law in ("zipf", "uniform"):
        for size in (SIZES[0], SIZES[-1]) if quick else SIZES:
            found[f"{law} {size}"] = _of(job, law, size, _QUICK_EVENTS if quick else _EVENTS[law])
    return {"arena_accounts": ARENA, "by": found}


def _of(job: Job, law: str, size: int, count: int) -> dict[str, Any]:
    accounts = [f"acc-{number:07d}" for number in drawn(law, size, count).tolist()]
    events = job.events(count)
    events.text["account_id"][:] = accounts
    messages = list(zip([account.encode() for account in accounts], events.events_json(), strict=True))
    name = f"accounts-{law}-{size}"
    settings: dict[str, Any] = {
        "kafka__client": "confluent",
        "state__arena_accounts": ARENA,
        "scoring__policy": job.without_alerts,
    }
    with deployed(job, name, **settings) as deployment:
        deployment.publish(messages)
        with deployment.worker() as worker:
            start = deployment.until(_BURN_IN * count, worker)
            before = _rows(worker)
            end = deployment.until(0.98 * count, worker)
            after = _rows(worker)
            worker.finish()
    events_done = end.events - start.events
    rows = {name: round((after[name] - before[name]) / events_done, 3) for name in after}
    return between(start, end) | {f"{name}_per_event": value for name, value in rows.items()}


def drawn(law: str, size: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(count,): account numbers below `size`, seeded."""
    rng = np.random.default_rng((SEED, size))
    if law == "uniform":
        return rng.integers(0, size, count)
    cumulative = np.cumsum((np.arange(size) + 1.0 + _ZIPF_SHIFT) ** -_ZIPF)
    found: np.ndarray[tuple[int], np.dtype[np.int64]] = np.searchsorted(cumulative, rng.random(count) * cumulative[-1])
    return found


def _rows(worker: WorkerProcess) -> dict[str, float]:
    metrics = worker.metrics()
    return {
        "account_misses": metrics.get('riskstream_arena_misses_total{pool="account"}', 0.0),
        "rows_loaded": metrics.get('riskstream_redis_rows_total{operation="loaded"}', 0.0),
        "rows_absent": metrics.get('riskstream_redis_rows_total{operation="absent"}', 0.0),
    }
