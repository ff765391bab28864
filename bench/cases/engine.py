"""Kafka to Kafka, exactly-once, Redis written behind: events per CPU second of the worker, client by client."""

from __future__ import annotations

from typing import Any

from bench.cases.model import around, unit
from bench.job import Job
from bench.processes import between, deployed

_EVENTS, _QUICK_EVENTS = 200_000, 80_000
_BURN_IN = 0.5


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    return of_client(job, "kafka-python", quick=quick)


def run_fast(job: Job, *, quick: bool) -> dict[str, Any]:
    return of_client(job, "confluent", quick=quick)


def of_client(job: Job, client: str, *, quick: bool, **settings: Any) -> dict[str, Any]:
    """A backlog is waiting; the first half brings the rows into memory, the second half counts."""
    count = _QUICK_EVENTS if quick else _EVENTS
    before = unit(job, repeats=3)
    with deployed(job, f"engine-{client}", kafka__client=client, **settings) as deployment:
        deployment.publish(job.messages(count))
        with deployment.worker() as worker:
            start = deployment.until(_BURN_IN * count, worker)
            end = deployment.until(0.995 * count, worker)
            shed = worker.metrics().get('riskstream_flags_total{flag="rules_only"}', 0.0)
            profile = worker.finish()
    if shed:
        raise SystemExit(f"{shed:,.0f} events were scored without the model: what was measured is not the job")
    figures = between(start, end)
    return {
        **figures,
        "client": client,
        "model_events_per_cpu_s": round(around(job, before), 1),
        "profile": parsed(profile),
    }


def parsed(profile: str) -> dict[str, float]:
    """CPU us an event by stage, from the table that `run --profile` prints."""
    rows = [line.split() for line in profile.splitlines()]
    return {row[0]: float(row[3].replace(",", "")) for row in rows if len(row) == 4 and _is_number(row[3])}


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).isdigit()
