"""What the long runs share (takeover, pressure, flat): options, servers, payments, lines on stderr."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from bench.job import Job
from bench.processes import Deployment, deployed
from stream.events.moments import moment_text

_MAX_BATCH_MS = 5_000
"""On a busy machine a model that is none the worse takes longer than a worker would allow."""


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """With the options that all have."""
    made = argparse.ArgumentParser(
        prog=f"python -m bench.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--bundle", type=Path, help="default: the benchmarks' own, trained once")
    return made


@contextlib.contextmanager
def on_servers(name: str, bundle: Path | None, **settings: Any) -> Iterator[Deployment]:
    """Kafka, Redis and the settings of the run's workers; all of it is thrown away at the end."""
    with tempfile.TemporaryDirectory(prefix=f"riskstream-{name}-") as folder:
        job = Job(Path(folder), bundle)
        with deployed(job, name, **{"scoring__max_batch_ms": _MAX_BATCH_MS, **settings}) as deployment:
            yield deployment


def payments(accounts: int, count: int, seed: int, ends_ms: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of `count` payments up to a time. Each account in turn while `count` does not exceed them."""
    draw = random.Random(seed)
    for number in range(count):
        account = f"a{number if count == accounts else draw.randrange(accounts)}"
        event = {
            "event_id": f"e{seed}-{number}",
            "account_id": account,
            "timestamp": moment_text(ends_ms - (count - number)),
            "amount": round(draw.lognormvariate(3, 1), 2),
            "currency": "USD",
            "merchant_id": f"m{draw.randrange(2_000)}",
            "mcc": "5411",
            "country": "US",
            "channel": "pos",
            "device_id": f"d{draw.randrange(5_000)}",
        }
        yield account.encode(), orjson.dumps(event)


_SAID: dict[str, float] = {}


def say(text: str, *, every_s: float = 0.0) -> None:
    """A line on stderr; one that comes again and again, at most every so many seconds."""
    if time.monotonic() - _SAID.get("at", -1e9) >= every_s:
        _SAID["at"] = time.monotonic()
        print(text, file=sys.stderr, flush=True)
