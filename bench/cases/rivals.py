"""The same events through Quix Streams and through the tutorial's loop: events per CPU second of their process."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from bench.cases.model import around, unit
from bench.job import PARTITIONS, Job
from bench.processes import PATIENCE_S, Child, Deployment, Moment, between, cpu_s, deployed, python

_EVENTS = 100_000
_BURN_IN_S, _MEASURED_S = 6.0, 15.0


def run_quix(job: Job, *, quick: bool) -> dict[str, Any]:
    before = unit(job, repeats=3)
    with deployed(job, "quix") as deployment:
        command = python("bench.rivals.quix", deployment.kafka.bootstrap, deployment.folder / "state", job.bundle)
        figures = _measured(job, deployment, command, quick=quick)
    return figures | {"model_events_per_cpu_s": round(around(job, before), 1)}


def run_tutorial(job: Job, *, quick: bool) -> dict[str, Any]:
    before = unit(job, repeats=3)
    with deployed(job, "tutorial") as deployment:
        command = python("bench.rivals.tutorial", deployment.kafka.bootstrap, deployment.redis.url, job.bundle)
        figures = _measured(job, deployment, command, quick=quick)
    return figures | {"model_events_per_cpu_s": round(around(job, before), 1)}


def _measured(job: Job, deployment: Deployment, command: list[str], *, quick: bool) -> dict[str, float]:
    """A backlog waits; what counts is a stretch of seconds after the first score and a burn-in."""
    deployment.publish(job.messages(_EVENTS))
    with Child(command, {}, deployment.folder / "rival.log") as rival, _Scores(deployment.kafka.bootstrap) as scores:
        deadline = time.monotonic() + PATIENCE_S
        while scores.count() == 0:
            rival.check()
            if time.monotonic() > deadline:
                raise SystemExit(f"no score came within {PATIENCE_S:.0f} s")
            time.sleep(0.2)
        time.sleep(2.0 if quick else _BURN_IN_S)
        start = _moment(deployment, rival, scores)
        time.sleep(5.0 if quick else _MEASURED_S)
        end = _moment(deployment, rival, scores)
    return between(start, end)


def _moment(deployment: Deployment, rival: Child, scores: _Scores) -> Moment:
    rival.check()
    kafka, redis = deployment.kafka.process, deployment.redis.process
    cpu = {"worker": cpu_s(rival.pid)}
    cpu |= {"kafka": cpu_s(kafka.pid) if kafka else 0.0, "redis": cpu_s(redis.pid) if redis else 0.0}
    return Moment(time.monotonic(), scores.count(), cpu)


class _Scores:
    """Counts what has been published on the scores topic, from the ends of its log (markers included: few)."""

    def __init__(self, bootstrap: str) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "count", "isolation.level": "read_committed", "log_level": 0}
        )

    def count(self) -> int:
        ends = [
            self._consumer.get_watermark_offsets(TopicPartition("risk-scores", number), timeout=10)
            for number in range(PARTITIONS)
        ]
        return sum(end[1] for end in ends)

    def __enter__(self) -> _Scores:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
