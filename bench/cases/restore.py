"""Restoring: rows per second from Redis into memory, and events per second by replay when Redis is empty."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import redis as vendor

from bench.inside import InsideEngine
from bench.job import ACCOUNTS, PARTITIONS, Job
from bench.processes import PATIENCE_S, WorkerProcess, cpu_s, deployed
from stream.features.assemble import FeatureState, RowName
from stream.stack import RedisServer

_EVENTS, _QUICK_EVENTS = 60_000, 25_000
_ROWS_A_CALL = 2_048


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    count = _QUICK_EVENTS if quick else _EVENTS
    return {"takeover": _takeover(job, count), "replay": _replay(job, count)}


def _takeover(job: Job, count: int) -> dict[str, Any]:
    """The new owner's work for each row that it meets: fetched, unpacked, admitted; in portions of a large turn."""
    with RedisServer(job.folder / "restore-redis") as redis:
        engine = InsideEngine(job, redis)
        events = job.events(count)
        engine.publish(events)
        engine.run()
        names = [
            cast(RowName, (pool.kind, partition, pool.identity[slot]))
            for pool in engine.worker._keeper._state.pools()
            for partition in range(PARTITIONS)
            for slot in pool.slots_of(partition).tolist()
        ]
        state = FeatureState(job.domain, accounts=2 * ACCOUNTS, entities=2 * ACCOUNTS)
        wall, cpu = time.monotonic(), time.process_time()
        loaded = 0
        for start in range(0, len(names), _ROWS_A_CALL):
            some = names[start : start + _ROWS_A_CALL]
            keys = [engine.store.row_key(partition, kind, identity) for kind, partition, identity in some]
            rows = engine.store.load_rows(keys, {})
            state.admit(some, keys, rows)
            loaded += sum(row is not None for row in rows)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    accounts = sum(kind == "account" for kind, _, _ in names)
    return {
        "rows": loaded,
        "account_rows": accounts,
        "rows_per_s": round(loaded / wall, 1),
        "rows_per_cpu_s": round(loaded / cpu, 1),
    }


def _replay(job: Job, count: int) -> dict[str, Any]:
    with deployed(job, "restore") as deployment:
        deployment.publish(job.messages(count))
        with deployment.worker() as worker:
            deployment.until(count, worker)
            worker.finish()
        client: Any = vendor.Redis.from_url(deployment.redis.url)
        client.flushall()
        client.close()
        with deployment.worker() as worker:
            _until(lambda: any(_restoring(worker)), "begin to restore")
            wall, used = time.monotonic(), cpu_s(worker.pid)
            _until(lambda: len(states := _restoring(worker)) == PARTITIONS and not any(states), "replay all")
            wall, used = time.monotonic() - wall, cpu_s(worker.pid) - used
            worker.finish()
    return {
        "events": count,
        "events_per_s": round(count / wall, 1),
        "events_per_cpu_s": round(count / used, 1),
    }


def _restoring(worker: WorkerProcess) -> list[float]:
    """1 for each partition that is being restored, 0 for each that runs."""
    return [value for name, value in worker.metrics().items() if name.startswith("riskstream_restoring")]


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"the worker does not {what}")
        # Each look costs the worker some milliseconds.
        time.sleep(0.1)
