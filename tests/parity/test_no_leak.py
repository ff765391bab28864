"""No feature knows the future: neither later events, nor verdicts before they became known.

What lies after a moment is replaced, and every vector up to it must keep its bits. Leaks planted on purpose
show that the comparison would find one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream.domains.payments import DOMAIN
from stream.features.event_view import EventView
from stream.features.money import Rates
from stream.features.spec import Column, Domain
from stream.history.batch import UNKNOWN, HistoryBatch, iterate_slices
from stream.metrics import Metrics
from stream.offline import HistoryReplay
from stream.simulate.simulation import Simulation
from tests.parity import streams
from tests.parity.naive_history import Event
from tests.parity.streams import HOUR_MS, Item, Shape

# --- later events, in the same batch and in later ones


def with_another_future(log: Sequence[Item], known: int, seed: int) -> list[Item]:
    """The log, from position `known` on with other times, amounts, merchants and verdicts."""
    draw = random.Random(seed)
    events = [item for item in log[known:] if isinstance(item, Event)]
    changed = []
    for item in log[known:]:
        stranger = draw.choice(events)
        if isinstance(item, Event):
            time_ms = item.time_ms + draw.randint(-HOUR_MS, HOUR_MS)
            changed.append(replace(stranger, partition=item.partition, offset=item.offset, time_ms=time_ms))
        else:
            changed.append(replace(item, fraud=not item.fraud, entities=stranger.entities))
    return [*log[:known], *changed]


def changed_outputs(log: Sequence[Item], other: Sequence[Item], known: int, domain: Domain, size: int) -> int:
    """How many events before position `known` have other vectors in the two logs."""
    one, two = (streams.run(streams.state(domain=domain), x, streams.fixed(size)) for x in (log, other))
    past = [(item.partition, item.offset) for item in log[:known] if isinstance(item, Event)]
    return sum(not streams.same_bits({0: one[key]}, {0: two[key]}) for key in past)


@pytest.mark.parametrize("size", [5, 400])
@pytest.mark.parametrize("known", [120, 251])
def test_later_events_change_nothing(size: int, known: int) -> None:
    log = streams.random_log(31, Shape(items=400, accounts=5, merchants=3, pace_ms=3 * HOUR_MS, labels=0.1))
    assert changed_outputs(log, with_another_future(log, known, 1), known, streams.DOMAIN, size) == 0


@dataclass(frozen=True, slots=True)
class NextAmount:
    """A leak: the amount of the next event of the batch."""

    name: str = "next_amount"
    group: str = "leak"
    of_event: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, self.group),)

    @property
    def same_fields(self) -> tuple[str, ...]:
        return ()

    def compute(self, view: EventView) -> list[np.ndarray]:
        return [np.roll(view.batch.amount_minor, -1).astype(np.float64)]


def test_a_planted_leak_of_the_next_event_is_found() -> None:
    leaking = replace(streams.DOMAIN, aggregates=(*streams.DOMAIN.aggregates, NextAmount()))
    log = [x for x in streams.random_log(31, Shape(items=300)) if isinstance(x, Event)]
    assert changed_outputs(log, with_another_future(log, 120, 1), 120, leaking, 64) > 0


# --- verdicts before they are known


@pytest.fixture(scope="module")
def history() -> HistoryBatch:
    return Simulation(accounts=30, seed=5, fraud_rate=0.06).generate(900)


def with_other_verdicts(batch: HistoryBatch, known_ms: int) -> HistoryBatch:
    """Every verdict that is not known at this time turned round, all events behind it with other verdicts."""
    unknown = batch.known_ms > known_ms
    turned = np.where(batch.fraud == UNKNOWN, np.int8(1), 1 - batch.fraud).astype(np.int8)
    told_ms = np.where(batch.fraud == UNKNOWN, known_ms + 1, batch.known_ms)
    return replace(
        batch, fraud=np.where(unknown, turned, batch.fraud), known_ms=np.where(unknown, told_ms, batch.known_ms)
    )


def vectors(batch: HistoryBatch, until_ms: int) -> np.ndarray:
    """Aggregates of the events up to a moment."""
    replay = HistoryReplay(DOMAIN, Rates.base_only("USD"), Metrics(CollectorRegistry()), labels="all")
    parts: Iterator[HistoryBatch] = iterate_slices(batch, 500)
    found = np.concatenate([part.assembled.aggregates.copy() for part in replay.run(parts)])
    return found[batch.time_ms <= until_ms]


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_verdicts_that_are_not_yet_known_change_nothing(history: HistoryBatch, share: float) -> None:
    now_ms = int(history.time_ms[int(len(history) * share)])
    other = with_other_verdicts(history, now_ms)
    assert (other.fraud[history.time_ms <= now_ms] != history.fraud[history.time_ms <= now_ms]).sum() > 30
    assert vectors(history, now_ms).tobytes() == vectors(other, now_ms).tobytes()


def test_verdicts_that_are_known_do_change_something(history: HistoryBatch) -> None:
    now_ms = int(history.time_ms[-1])
    without = replace(history, fraud=np.full_like(history.fraud, UNKNOWN))
    changed = vectors(history, now_ms) != vectors(without, now_ms)
    assert changed.any(axis=1).sum() > 20


def test_a_planted_leak_of_verdicts_is_found(history: HistoryBatch) -> None:
    """The same history, its verdicts given out with the events: as a reader that forgot the delay would."""
    history = history.take(slice(0, 250))  # every verdict cuts a batch
    now_ms = int(history.time_ms[len(history) // 2])
    leaks = [replace(x, known_ms=x.time_ms) for x in (history, with_other_verdicts(history, now_ms))]
    one, other = (vectors(leak, now_ms) for leak in leaks)
    assert one.tobytes() != other.tobytes()
