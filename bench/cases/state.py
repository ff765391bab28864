"""Bytes of state: of a packed row, in Redis, and in the arena, by kind of row."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import redis as vendor

from bench.inside import InsideEngine
from bench.job import Job
from stream.features.assemble import FeatureState
from stream.stack import RedisServer

_EVENTS, _QUICK_EVENTS = 80_000, 15_000
_ACCOUNTS = 5_000
_SAMPLE = 1_500


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    """About 16 events an account. Of each kind a sample of keys is asked for its length and its memory."""
    with RedisServer(job.folder / "state-redis") as redis:
        engine = InsideEngine(job, redis)
        client: Any = vendor.Redis.from_url(redis.url)
        empty = client.info("memory")["used_memory"]
        engine.publish(job.events(_QUICK_EVENTS if quick else _EVENTS, accounts=_ACCOUNTS))
        engine.run()
        used = client.info("memory")["used_memory"] - empty
        kinds = _by_kind(client)
        found = {kind: _measured(client, keys) for kind, keys in kinds.items()}
        client.close()
    state = FeatureState(job.domain, accounts=1_024, entities=1_024)
    arena = {
        pool.kind: sum(pool[field.name].nbytes for field in pool.fields) // pool.capacity for pool in state.pools()
    }
    return {"redis": found, "redis_bytes": used, "keys": sum(map(len, kinds.values())), "arena_bytes_per_row": arena}


def _by_kind(client: Any) -> dict[str, list[bytes]]:
    """Keys by what they hold: row:account, row:merchant, copy:merchant, ..."""
    kinds: dict[str, list[bytes]] = defaultdict(list)
    for key in client.scan_iter(count=1_000):
        words = key.decode().partition("}:")[2].split(":")
        kinds[":".join(words[:2])].append(key)
    return {kind: keys for kind, keys in kinds.items() if kind.startswith(("row:", "copy:"))}


def _measured(client: Any, keys: list[bytes]) -> dict[str, float]:
    sample = random.Random(1).sample(sorted(keys), min(len(keys), _SAMPLE))
    pipe = client.pipeline(transaction=False)
    for key in sample:
        pipe.memory_usage(key)
        pipe.execute_command("OBJECT", "ENCODING", key)
        pipe.hvals(key) if b"copy:" in key else pipe.get(key)
    answers = pipe.execute()
    memory = sum(answers[0::3]) / len(sample)
    lengths = [sum(map(len, value)) if isinstance(value, list) else len(value) for value in answers[2::3]]
    packed = sum(lengths) / len(sample)
    return {
        "keys": len(keys),
        "packed_bytes": round(packed, 1),
        "redis_bytes": round(memory, 1),
        "to_packed": round(memory / packed, 3),
    }
