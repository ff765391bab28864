"""`make bench-flat`: does a worker's memory stay flat? Hours of event time at the rate that it sustains.

One worker on real Kafka and Redis gets events as fast as it does them (a few thousand are in flight at any time), for
SECONDS, while their event time runs HOURS on: windows, tiles and rows age as in a working day. There are more accounts
and devices than the arena holds, so that rows come and go; some events are bad, some repeated, some get labels. Every
ten seconds the worker's resident memory is read. The first third, in which arena and caches fill, does not count for
the slope. A line a minute, and JSON as the last line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from bench.long import on_servers, parser, say
from bench.processes import Deployment, WorkerProcess, resident_mib, wait_ready
from stream.events.moments import moment_text

ACCOUNTS, MERCHANTS, DEVICES = 60_000, 2_000, 40_000
ARENA = 16_384
_IN_FLIGHT, _AT_ONCE = 4_096, 512
_SAMPLE_S, _TOLD_S = 10.0, 60.0
_BURN_IN = 1 / 3
_LABEL_FIELDS = ("event_id", "account_id", "timestamp", "amount", "currency", "merchant_id", "device_id")


@dataclass
class Source:
    """Endless payments whose event time runs faster than the clock, up to now."""

    hours: float
    seconds: float
    random: random.Random
    started_s: float = field(default_factory=time.time)
    made: int = 0
    labels: list[dict[str, Any]] = field(default_factory=list)

    @property
    def event_s(self) -> float:
        """The event time of this moment: it begins HOURS ago and reaches the clock at the end."""
        gone = min(time.time() - self.started_s, self.seconds)
        return self.started_s - self.hours * 3_600 + gone * (self.hours * 3_600 / self.seconds + 1)

    def messages(self, count: int) -> list[tuple[str, bytes, bytes]]:
        """(topic, key, value) of so many events, and of a label now and then."""
        draw, found = self.random, []
        for _ in range(count):
            self.made += 1
            # A fifth of the accounts make most of the payments.
            name = f"a{int(ACCOUNTS * draw.random() ** 3)}"
            event = {
                "event_id": f"e{self.made}",
                "account_id": name,
                "timestamp": moment_text(int(self.event_s * 1000)),
                "amount": round(draw.lognormvariate(3, 1), 2),
                "currency": "USD",
                "merchant_id": f"m{int(MERCHANTS * draw.random() ** 2)}",
                "mcc": "5411",
                "country": "US",
                "channel": "pos",
                "device_id": f"d{draw.randrange(DEVICES)}",
            }
            key, value = name.encode(), orjson.dumps(event)
            kind = draw.random()
            found.append(("transactions", key, value[:-9] if kind < 0.001 else value))
            if kind > 0.995:
                found.append(("transactions", key, value))
            elif kind > 0.99:
                label = {name: event[name] for name in _LABEL_FIELDS}
                label |= {"fraud": draw.random() < 0.5, "labelled_at": event["timestamp"], "source": "analyst"}
                found.append(("labels", key, orjson.dumps(label)))
        return found


def main(arguments: list[str] | None = None) -> int:
    made = parser("flat", __doc__)
    made.add_argument("--seconds", type=float, default=1_500.0, help="how long; default 25 minutes")
    made.add_argument("--hours", type=float, default=8.0, help="event time that passes meanwhile")
    options = made.parse_args(arguments)
    settings = {"state__arena_accounts": ARENA, "state__arena_entities": ARENA}
    with on_servers("flat", options.bundle, **settings) as deployment, deployment.worker() as worker:
        wait_ready(worker)
        samples = run(deployment, worker, options)
        worker.finish()
    print(json.dumps(figures(samples, options)))
    return 0


def run(deployment: Deployment, worker: WorkerProcess, options: argparse.Namespace) -> list[tuple[float, float, float]]:
    """(seconds, events done, resident MiB) every ten seconds."""
    source = Source(options.hours, options.seconds, random.Random(options.seed))
    producer = deployment.producer()
    started, sent, done = time.monotonic(), 0, 0.0
    samples: list[tuple[float, float, float]] = []
    told = -_TOLD_S
    say(f"{'minutes':>8}{'event hours':>13}{'events':>12}{'events/s':>10}{'RSS MiB':>9}")
    while (gone := time.monotonic() - started) < options.seconds:
        done = worker.events(worker.metrics()) or done
        while sent - done < _IN_FLIGHT:
            for topic, key, value in source.messages(_AT_ONCE):
                producer.produce(topic, value, key)
                sent += topic == "transactions"
        producer.poll(0)
        if not samples or gone - samples[-1][0] >= _SAMPLE_S:
            samples.append((gone, done, resident_mib(worker.pid)))
        if gone - told >= _TOLD_S:
            told, hours = gone, gone / options.seconds * options.hours
            line = f"{gone / 60:>8.1f}{hours:>13.2f}{done:>12,.0f}{done / max(gone, 1):>10,.0f}{samples[-1][2]:>9.1f}"
            say(line)
        time.sleep(0.1)
    producer.flush()
    return samples


def figures(samples: list[tuple[float, float, float]], options: argparse.Namespace) -> dict[str, Any]:
    """Memory and its slope after the burn-in."""
    seconds, events, mib = np.array(samples).T
    counted = seconds >= options.seconds * _BURN_IN
    slope = float(np.polyfit(seconds[counted], mib[counted], 1)[0])
    per_s = (events[-1] - events[0]) / (seconds[-1] - seconds[0])
    half = len(mib[counted]) // 2
    return {
        "seconds": options.seconds,
        "event_hours": options.hours,
        "events": int(events[-1]),
        "events_per_s": round(float(per_s), 1),
        "rss_mib": {
            "first": round(float(mib[0]), 1),
            "after_burn_in": round(float(mib[counted][0]), 1),
            "last": round(float(mib[-1]), 1),
            "max": round(float(mib.max()), 1),
            "median_before": round(float(np.median(mib[counted][:half])), 1),
            "median_after": round(float(np.median(mib[counted][half:])), 1),
        },
        "slope_mib_per_hour": round(slope * 3_600, 2),
        "slope_mib_per_event_hour": round(slope * options.seconds / options.hours, 3),
        "slope_bytes_per_event": round(slope * 2**20 / per_s, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
