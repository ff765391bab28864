"""How large a deployment must be: a few rules over figures that `make bench` measured. Pure.

Every figure is an assumption with a name: the command prints them, and each can be replaced by what was
measured on the machines in question.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MIB = 2**20
_GIB = 2**30
_ROWS = 4_096
_KINDS = 4
"""Kinds of entities in the payments domain: merchant, terminal, device, address."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What one event and one row cost, and how much room is left. From docs/tuning.md, on 2.6 GHz EPYC cores."""

    worker_us: float = 120.0
    """CPU microseconds of a worker per event."""
    broker_us: float = 35.0
    """CPU microseconds of the brokers per event and replica, in turns of middling size: a transaction costs some ms."""
    redis_us: float = 40.0
    """CPU microseconds of Redis per event: what is read and flushed of one account row and four entity rows."""
    utilisation: float = 0.6
    """Share of a core that may be busy in the long run: the rest is for peaks, restores and latency."""
    account_bytes: float = 2_600.0
    """Bytes in Redis of one account, key and overhead included."""
    entities_per_account: float = 4.0
    """Entity rows (merchants, terminals, devices, addresses; one per partition that sees them) per account."""
    entity_bytes: float = 1_100.0
    """Bytes in Redis of one entity row and its copy for the other partitions."""
    active_share: float = 0.3
    """Share of the accounts that come again often enough to be worth a place in memory."""
    arena_account_bytes: float = 6_700.0
    """Bytes of an account in a worker's memory."""
    arena_entity_bytes: float = 2_800.0
    """Bytes of an entity in a worker's memory."""
    worker_base_bytes: float = 700.0 * _MIB
    """A worker without rows: Python, torch, the model, buffers."""
    partition_events_per_s: float = 2_000.0
    """What one partition should carry: a partition cannot be split over workers."""
    message_bytes: float = 1_400.0
    """Of one event in Kafka: the event, its score and its share of alerts."""
    retention_days: float = 35.0
    """The horizon of 30 days and some more: what a rebuild reads."""


@dataclass(frozen=True, slots=True)
class Size:
    """A deployment."""

    workers: int
    partitions: int
    arena_accounts: int
    arena_entities: int
    worker_bytes: float
    worker_cores: float
    broker_cores: float
    redis_cores: float
    redis_bytes: float
    kafka_bytes: float
    warnings: tuple[str, ...]


def size(rate: float, accounts: int, assumed: Assumptions) -> Size:
    """For `rate` events per second at the peak and so many accounts. ValueError when one is not above 0."""
    if rate <= 0 or accounts <= 0:
        raise ValueError("rate and accounts must be above 0")
    worker_cores = rate * assumed.worker_us / 1e6 / assumed.utilisation
    workers = max(1, math.ceil(worker_cores))
    partitions = _partitions(rate, workers, assumed)
    arena_accounts = _rounded(accounts * assumed.active_share / workers)
    arena_entities = _rounded(arena_accounts * assumed.entities_per_account / _KINDS)
    rows = arena_accounts * assumed.arena_account_bytes + _KINDS * arena_entities * assumed.arena_entity_bytes
    redis_cores = rate * assumed.redis_us / 1e6 / assumed.utilisation
    redis_bytes = accounts * (assumed.account_bytes + assumed.entities_per_account * assumed.entity_bytes)
    return Size(
        workers=workers,
        partitions=partitions,
        arena_accounts=arena_accounts,
        arena_entities=arena_entities,
        worker_bytes=assumed.worker_base_bytes + rows,
        worker_cores=worker_cores,
        broker_cores=3 * rate * assumed.broker_us / 1e6 / assumed.utilisation,
        redis_cores=redis_cores,
        redis_bytes=redis_bytes,
        kafka_bytes=3 * rate * assumed.message_bytes * assumed.retention_days * 86_400,
        warnings=_warnings(redis_cores, redis_bytes, workers),
    )


def _partitions(rate: float, workers: int, assumed: Assumptions) -> int:
    """Room to double the workers: adding partitions later would move accounts away from their history."""
    least = max(2 * workers, math.ceil(rate / assumed.partition_events_per_s), 4)
    return math.ceil(least / workers) * workers


def _rounded(least: float) -> int:
    return max(1, math.ceil(least / _ROWS)) * _ROWS


def _warnings(redis_cores: float, redis_bytes: float, workers: int) -> tuple[str, ...]:
    found = []
    if redis_cores > 1:
        servers = math.ceil(redis_cores)
        found.append(
            f"one redis-server runs commands on one core, this needs {redis_cores:.1f}: split the accounts over "
            f"{servers} deployments, each with topics and a server of its own"
        )
    if redis_bytes > 256 * _GIB:
        found.append(f"{redis_bytes / _GIB:,.0f} GiB of rows are more than one Redis server should hold")
    if workers > 200:
        found.append("above some 200 workers a rebalance of one group takes long: use several groups of topics")
    return tuple(found)
