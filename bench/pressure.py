"""`make bench-pressure`: what a worker does at twice the rate that it can do.

One worker with a challenger, on real Kafka and Redis. First a backlog shows its rate. Then events come at twice that
(and at twice what it turns out to do, should that be more) for SECONDS, whatever it does, with `scoring.deadline_ms`
at two seconds; then nothing until it has caught up, and at last a trickle, in which it takes up again what it had left
out. Shown are lag, step of shedding and memory; at the end `riskstream audit` counts outcomes. A line every five
seconds, and JSON as the last line.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from bench.job import COMMAND, surroundings
from bench.long import on_servers, parser, payments, say
from bench.processes import PATIENCE_S, Deployment, WorkerProcess, resident_mib, wait_ready

ACCOUNTS = 20_000
STEPS = ("nothing", "reasons", "challengers", "model")
_BACKLOG, _DEADLINE_MS, _FACTOR = 20_000, 2_000, 2.0
_TRICKLE_S, _TRICKLE_SHARE = 15.0, 0.1
_LOOK_BACK_S = 4.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker at a moment."""

    at_s: float
    phase: str
    done: float
    lag: float
    step: int
    rss_mib: float


def main(arguments: list[str] | None = None) -> int:
    made = parser("pressure", __doc__)
    made.add_argument("--seconds", type=float, default=60.0, help="how long the pressure lasts")
    options = made.parse_args(arguments)
    with on_servers("pressure", options.bundle, scoring__deadline_ms=_DEADLINE_MS) as deployment:
        deployment.overrides["RISKSTREAM_SCORING__CHALLENGERS"] = str(deployment.job.bundle)
        print(json.dumps(measure(deployment, options.seconds, options.seed)))
    return 0


def measure(deployment: Deployment, seconds: float, seed: int) -> dict[str, Any]:
    """All phases; the figures."""
    rate = capacity(deployment, seed)
    with deployment.worker() as worker:
        wait_ready(worker)
        under = Pressure(deployment, worker, seed)
        start = worker.events(worker.metrics())
        sent = under.load(_FACTOR * rate, seconds, "pressure", factor=_FACTOR)
        done = worker.events(worker.metrics()) - start
        caught_up_s = under.catch_up()
        under.load(max(1.0, _TRICKLE_SHARE * rate), _TRICKLE_S, "trickle")
        under.catch_up()
        shed = under.shed_events()
        worker.finish()
    return figures(under.samples, rate, sent / seconds, done / seconds, caught_up_s, shed, audit(deployment))


def capacity(deployment: Deployment, seed: int) -> float:
    """Events a second that a worker does of a backlog, when nothing is shed."""
    deployment.publish(list(payments(ACCOUNTS, _BACKLOG + 1, seed, int(time.time() * 1000))))
    with deployment.worker(scoring__deadline_ms=0) as worker:
        wait_ready(worker)
        first = deployment.until(_BACKLOG * 0.2, worker)
        last = deployment.until(_BACKLOG * 0.9, worker)
        deployment.until(_BACKLOG + 1, worker)
        worker.finish()
    rate = (last.events - first.events) / (last.wall_s - first.wall_s)
    say(f"the worker does {rate:,.0f} events/s")
    return rate


class Pressure:
    """Loads a worker and looks at it every second."""

    def __init__(self, deployment: Deployment, worker: WorkerProcess, seed: int) -> None:
        self._deployment, self._worker, self._seed = deployment, worker, seed
        self._started, self._told = time.monotonic(), -10.0
        self._producer = deployment.producer()
        self.samples: list[Sample] = []
        self._sent = 0
        self._before = worker.events(worker.metrics())
        say(f"{'seconds':>8}  {'phase':<9}{'done':>10}{'lag':>9}  {'left out':<12}{'RSS MiB':>8}")

    def load(self, rate: float, seconds: float, phase: str, *, factor: float = 0.0) -> int:
        """Events at this rate, or at `factor` times what the worker does, if that is more; returns how many."""
        self._seed += 1
        source = payments(ACCOUNTS, 10**9, self._seed, int(time.time() * 1000) + 10**9)
        started, sent, due, looked = time.monotonic(), 0, 0.0, -1.0
        last = started
        while (now := time.monotonic()) < started + seconds:
            if now - looked >= 1.0:
                looked = now
                self._look(phase)
                rate = max(rate, factor * self._done_per_s())
            due += rate * (now - last)
            last = now
            for key, value in itertools.islice(source, max(0, int(due) - sent)):
                self._producer.produce("transactions", value, key)
                sent += 1
            self._producer.poll(0)
            time.sleep(0.02)
        self._producer.flush()
        self._sent += sent
        return sent

    def _done_per_s(self) -> float:
        """Over the last seconds."""
        span = self.samples[-6:]
        passed = span[-1].at_s - span[0].at_s
        return (span[-1].done - span[0].done) / passed if passed >= _LOOK_BACK_S else 0.0

    def catch_up(self) -> float:
        """Until nothing is left; the seconds that it takes."""
        started = time.monotonic()
        while self._look("catch up").done < self._before + self._sent:
            if time.monotonic() - started > 2 * PATIENCE_S:
                raise SystemExit(f"the worker does not catch up: {self.samples[-1]}")
            time.sleep(0.5)
        return time.monotonic() - started

    def shed_events(self) -> dict[str, int]:
        """Events scored while something was left out, by step."""
        metrics = self._worker.metrics()
        return {step: int(metrics[f'riskstream_shed_events_total{{step="{step}"}}']) for step in STEPS[1:]}

    def _look(self, phase: str) -> Sample:
        metrics = self._worker.metrics()
        lags = [v for name, v in metrics.items() if name.startswith("riskstream_consumer_lag_events")]
        sample = Sample(
            time.monotonic() - self._started,
            phase,
            self._worker.events(metrics),
            sum(lags),
            int(metrics["riskstream_shed_step"]),
            resident_mib(self._worker.pid),
        )
        self.samples.append(sample)
        if sample.at_s - self._told >= 5:
            self._told = sample.at_s
            left_out = STEPS[sample.step]
            say(
                f"{sample.at_s:>8.0f}  {phase:<9}{sample.done:>10,.0f}{sample.lag:>9,.0f}  {left_out:<12}"
                f"{sample.rss_mib:>8.1f}"
            )
        return sample


def audit(deployment: Deployment) -> dict[str, Any]:
    """What `riskstream audit` says."""
    command = [*COMMAND, "audit", "--json"]
    done = subprocess.run(
        command, env=surroundings(deployment.environment), stdout=subprocess.PIPE, text=True, check=False
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(
    samples: list[Sample],
    rate: float,
    offered: float,
    done: float,
    caught_up_s: float,
    shed: dict[str, int],
    audited: dict[str, Any],
) -> dict[str, Any]:
    """What the JSON holds."""
    first = {STEPS[s.step]: s.at_s for s in reversed(samples) if s.step}
    return {
        "capacity_per_s": round(rate, 1),
        "offered_per_s": round(offered, 1),
        "done_per_s_under_pressure": round(done, 1),
        "deadline_ms": _DEADLINE_MS,
        "lag_max": int(max(s.lag for s in samples)),
        "first_at_s": {step: round(at, 1) for step, at in first.items()},
        "shed_events": shed,
        "left_out_at_the_end": STEPS[samples[-1].step],
        "caught_up_s": round(caught_up_s, 1),
        "rss_mib": {"first": round(samples[0].rss_mib, 1), "max": round(max(s.rss_mib for s in samples), 1)},
        "audit": {
            name: audited.get(name)
            for name in ("events", "scored", "duplicates", "dead", "pending", "lost", "identity_holds")
        },
        "exactly_once": audited.get("exactly_once"),
    }


if __name__ == "__main__":
    sys.exit(main())
