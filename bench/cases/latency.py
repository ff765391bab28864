"""Open loop: from the moment an event was due to the moment its score is visible to a read_committed consumer.

Broker, Redis, worker, load and reader share the machine's cores. Due times have whole milliseconds.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.job import PARTITIONS, Job
from bench.processes import Child, Deployment, WorkerProcess, between, deployed, python, wait_ready

RATES = (500, 1_000, 2_000, 4_000)
_SECONDS, _BURN_IN_S = 120.0, 10.0
_FAST_RATE = 2_000
_PERCENTILES = {"p50": 50, "p99": 99, "p99.9": 99.9, "p99.99": 99.99, "max": 100}


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    """All rates with the default client, and the bar's rate with the fast one."""
    rates = (1_000,) if quick else RATES
    seconds = 20.0 if quick else _SECONDS
    found = {str(rate): of_rate(job, rate, seconds, "kafka-python") for rate in rates}
    if not quick:
        found[f"{_FAST_RATE} confluent"] = of_rate(job, _FAST_RATE, seconds / 3, "confluent")
    return {"rates": found}


def of_rate(
    job: Job, rate: int, seconds: float, client: str, *, partitions: int = PARTITIONS, **settings: object
) -> dict[str, Any]:
    """Latency in milliseconds at one rate, after a burn-in of the whole chain at that rate."""
    burn_in = min(_BURN_IN_S, seconds / 3)
    name = f"latency-{rate}-{client}"
    with deployed(job, name, partitions=partitions, kafka__client=client, **settings) as deployment:
        file = deployment.folder / "messages"
        count = int(rate * (seconds + burn_in))
        file.write_bytes(b"\n".join(key + b"\t" + value for key, value in job.messages(count)))
        with deployment.worker() as worker:
            wait_ready(worker)
            return _measured(deployment, worker, partitions, rate, seconds, burn_in)


def _measured(
    deployment: Deployment, worker: WorkerProcess, partitions: int, rate: int, seconds: float, burn_in: float
) -> dict[str, Any]:
    out, bootstrap = deployment.folder / "latency.npy", deployment.kafka.bootstrap
    watching = python("bench.helpers.watch", bootstrap, partitions, out)
    loading = python("bench.helpers.load", bootstrap, deployment.folder / "messages", rate, seconds + burn_in)
    with Child(watching, {}, deployment.folder / "watch.log") as watch:
        time.sleep(1.5)
        with Child(loading, {}, deployment.folder / "load.log") as load:
            time.sleep(burn_in)
            start = deployment.moment(worker)
            sent, behind = load.process.communicate()[0].split()
            end = deployment.moment(worker)
        time.sleep(1.0)
        watch.finish()
        worker.finish()
    seen = np.load(out)
    first_ms = seen[:, 0].min() + burn_in * 1000
    latency = np.sort(seen[seen[:, 0] >= first_ms, 1])
    figures = {name: round(float(np.percentile(latency, p)), 1) for name, p in _PERCENTILES.items()}
    return {
        **figures,
        "scores": len(latency),
        "sent": int(sent),
        "seen": len(seen),
        "load_behind_ms": round(float(behind) * 1000, 1),
        **{name: value for name, value in between(start, end).items() if name.endswith("_us")},
    }
