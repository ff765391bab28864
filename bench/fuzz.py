"""Hostile messages through everything that reads them: decoding, validation, columns, and a worker in memory.

Run by `make fuzz N=1000000`. For each message: it becomes one event or one reject with a reason, alone and among
others alike; a worker over the in-memory ports gives it exactly one outcome and goes on; its CPU time is taken.
One that took longer than the limit is measured again, and its least time counts: what is left then is the message's
own cost, and not a garbage collection that fell into its time. Memory: the peak of the process, and, by tracemalloc,
of the largest messages of each kind. The last line of stdout is JSON. Exit code 0: nothing was found.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import logging
import resource
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog

from bench.memory_worker import MemoryWorker
from bench.mutations import Hostile, hostile
from stream.config import BatchSettings
from stream.domains.payments import DOMAIN
from stream.events.decoder import Decoded, Decoder
from stream.events.rejects import Reject
from stream.features.columns import ColumnBuilder
from stream.features.money import Rates

CHUNK = 500
LIMIT_MS = 10.0
LIMIT_PEAK_BYTES = 32 * 2**20
_REPEATS, _PAUSE_S = 400, 0.05
_LONGEST_REASON = 400
_WARM_UP = 1_000
_MEASURED_PER_KIND = 3
_TELL_EVERY = 50_000


@dataclass(frozen=True, slots=True)
class Message:
    """A hostile message as the decoder sees it."""

    value: bytes | None
    timestamp: int


@dataclass(slots=True)
class Report:
    """What was done, and what was found. `problems` holds a sentence per kind of finding, with its seed."""

    messages: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0
    """The greatest CPU time of one message: of those above the limit, the least of several measurements."""
    slowest_kind: str = ""
    slowest_first_ms: float = 0.0
    """The greatest CPU time at first sight."""
    total_cpu_ms: float = 0.0
    peak_bytes: int = 0
    """The greatest memory that one message took while it was read (tracemalloc)."""
    rss_growth_bytes: int = 0

    def find(self, problem: str, message: Hostile) -> None:
        self.problems[f"{problem} ({message.kind})"] += 1


class Examined:
    """Decoding, validation and columns of both topics."""

    def __init__(self, limits: BatchSettings) -> None:
        self._decoders = tuple(Decoder(model, limits) for model in (DOMAIN.event, DOMAIN.label))
        self._columns = ColumnBuilder(DOMAIN, Rates.base_only(DOMAIN.base_currency))

    def read(self, messages: Sequence[Message], is_label: bool) -> Decoded:
        """As the pipeline does it."""
        decoded = self._decoders[is_label].decode(messages)
        count = len(decoded.events)
        origins = np.zeros(count, np.int32), np.arange(count)
        if is_label:
            known_ms = decoded.times_ms[DOMAIN.label_time_field]
            self._columns.labels(decoded.events, decoded.time_ms, known_ms, *origins)
        else:
            self._columns.events(decoded.events, decoded.time_ms, *origins)
        return decoded


def run(
    count: int,
    seed: int,
    *,
    worker_every: int = 1,
    corpus: int = 400,
    examined: Examined | None = None,
    tell: Callable[[Report], None] | None = None,
) -> Report:
    """Examines `count` messages grown from `corpus` valid ones; every n-th chunk goes through a worker too (0: none).

    Whatever a message does is a finding, not an error.
    """
    report, limits = Report(), BatchSettings()
    examined = examined or Examined(limits)
    messages = hostile(seed, corpus)
    for message in itertools.islice(messages, _WARM_UP):
        examined.read([Message(message.value, message.arrived_ms)], message.is_label)
    worker = MemoryWorker(limits) if worker_every else None
    # As a worker does once it has started: what lives for ever need not be looked at in every collection.
    gc.collect()
    gc.freeze()
    before, largest = _rss_bytes(), dict[str, list[Hostile]]()
    try:
        for number, chunk in enumerate(_chunks(messages, count)):
            alone = [_alone(examined, message, report) for message in chunk]
            _together(examined, chunk, alone, report)
            if worker is not None and number % worker_every == 0:
                _in_worker(worker, chunk, alone, report)
            _keep_largest(largest, chunk)
            if tell is not None:
                tell(report)
    finally:
        gc.unfreeze()
    report.rss_growth_bytes = max(0, _rss_bytes() - before)
    for message in itertools.chain.from_iterable(largest.values()):
        _measure_memory(examined, message, report)
    return report


def _chunks(messages: Iterator[Hostile], count: int) -> Iterator[list[Hostile]]:
    while count > 0:
        yield list(itertools.islice(messages, min(CHUNK, count)))
        count -= CHUNK


def _alone(examined: Examined, message: Hostile, report: Report) -> Reject | None:
    """The message by itself: its reject, None if it is an event."""
    report.messages += 1
    report.kinds[message.kind] += 1
    try:
        decoded, took_ms = _timed(examined, message)
        report.total_cpu_ms += took_ms
        report.slowest_first_ms = max(report.slowest_first_ms, took_ms)
        if took_ms > LIMIT_MS:
            took_ms = _least_ms(examined, message, took_ms)
        if took_ms > LIMIT_MS:
            report.find(f"took more than {LIMIT_MS:.0f} ms", message)
        if took_ms > report.slowest_ms:
            report.slowest_ms, report.slowest_kind = took_ms, message.kind
    except Exception as error:
        report.find(f"raised {type(error).__name__}", message)
        return None
    if len(decoded.events) + len(decoded.rejects) != 1:
        report.find("has not exactly one outcome", message)
    if not decoded.rejects:
        report.accepted += 1
        return None
    (reject,) = decoded.rejects
    report.rejected[reject.code] += 1
    if not reject.reason or len(reject.reason) > _LONGEST_REASON:
        report.find("has no reason, or an endless one", message)
    return reject


def _least_ms(examined: Examined, message: Hostile, took_ms: float) -> float:
    """Measured again until it is within the limit, at most so often: a busy machine takes time that is not its own."""
    for _ in range(_REPEATS):
        took_ms = min(took_ms, _timed(examined, message)[1])
        if took_ms <= LIMIT_MS:
            break
        time.sleep(_PAUSE_S)
    return took_ms


def _timed(examined: Examined, message: Hostile) -> tuple[Decoded, float]:
    """With the CPU time of this thread in milliseconds."""
    started = time.thread_time_ns()
    decoded = examined.read([Message(message.value, message.arrived_ms)], message.is_label)
    return decoded, (time.thread_time_ns() - started) / 1e6


def _together(examined: Examined, chunk: Sequence[Hostile], alone: Sequence[Reject | None], report: Report) -> None:
    """What a message becomes must not hang on its neighbours."""
    for is_label in (False, True):
        places = [place for place, message in enumerate(chunk) if message.is_label is is_label]
        batch = [Message(chunk[place].value, chunk[place].arrived_ms) for place in places]
        try:
            rejects = {places[reject.index]: reject.code for reject in examined.read(batch, is_label).rejects}
        except Exception as error:
            report.problems[f"a batch raised {type(error).__name__}"] += 1
            continue
        for place in places:
            single = alone[place]
            if rejects.get(place) != (None if single is None else single.code):
                report.find("becomes something else among others", chunk[place])


def _in_worker(worker: MemoryWorker, chunk: Sequence[Hostile], alone: Sequence[Reject | None], report: Report) -> None:
    """A worker gives each message its one outcome: dead letter, score, or duplicate; labels are folded."""
    try:
        outcomes = worker.work_off(chunk)
    except Exception as error:
        report.problems[f"a worker stopped: {type(error).__name__}"] += 1
        return
    for message, reject, outcome in zip(chunk, alone, outcomes, strict=True):
        dead = reject is not None
        if dead != (outcome == "dead"):
            report.find(f"is {outcome} in a worker, and {'invalid' if dead else 'valid'} by itself", message)
    if worker.unanswered:
        report.problems["events of a worker without an outcome"] += worker.unanswered


def _keep_largest(largest: dict[str, list[Hostile]], chunk: Sequence[Hostile]) -> None:
    for message in chunk:
        kept = largest.setdefault(message.kind, [])
        kept.append(message)
        kept.sort(key=lambda each: -len(each.value or b""))
        del kept[_MEASURED_PER_KIND:]


def _measure_memory(examined: Examined, message: Hostile, report: Report) -> None:
    tracemalloc.start()
    # What it raises has been found before.
    with contextlib.suppress(Exception):
        examined.read([Message(message.value, message.arrived_ms)], message.is_label)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    report.peak_bytes = max(report.peak_bytes, peak)
    if peak > LIMIT_PEAK_BYTES:
        report.find(f"took more than {LIMIT_PEAK_BYTES // 2**20} MiB", message)


def _rss_bytes() -> int:
    """The most that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_json(report: Report, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "messages": report.messages,
        "seed": seed,
        "accepted": report.accepted,
        "rejected": report.rejected.total(),
        "by_code": dict(report.rejected.most_common()),
        "problems": dict(report.problems),
        "cpu_ms_max": round(report.slowest_ms, 3),
        "cpu_ms_max_kind": report.slowest_kind,
        "cpu_ms_max_at_first": round(report.slowest_first_ms, 3),
        "cpu_us_mean": round(report.total_cpu_ms / max(1, report.messages) * 1e3, 1),
        "memory_peak_of_one_mib": round(report.peak_bytes / 2**20, 2),
        "rss_growth_mib": round(report.rss_growth_bytes / 2**20, 1),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    """0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-worker", action="store_true", help="decoding, validation and columns only")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    started = time.monotonic()

    def tell(report: Report) -> None:
        if report.messages % _TELL_EVERY == 0:
            print(f"{report.messages:,} messages, {report.problems.total()} problems", file=sys.stderr, flush=True)

    report = run(options.messages, options.seed, worker_every=not options.without_worker, tell=tell)
    for kind, count in report.kinds.most_common():
        print(f"{kind:18} {count:10,}")
    for problem, count in report.problems.most_common():
        print(f"PROBLEM {problem}: {count:,}")
    print(json.dumps(as_json(report, options.seed, time.monotonic() - started)))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
