"""Random logs of events and labels, and the fast features run over them in any cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stream.domains import payments
from stream.features import operators
from stream.features.assemble import FeatureState
from stream.features.batch import Assembled, EventBatch, LabelBatch
from stream.features.columns import hash_ids
from stream.features.spec import Domain
from tests.parity.naive_history import Event, Label

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DOMAIN = replace(
    payments.DOMAIN,
    numbers=("attributes.balance",),
    aggregates=(
        *payments.DOMAIN.aggregates,
        operators.NumberOf("balance", "balance", field="attributes.balance"),
        operators.NumberOf("balance_log", "balance", log=True, field="attributes.balance"),
    ),
)
"""Payments, with the operators that only a domain of one's own uses."""
Item = Event | Label
Output = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """What a random log looks like. Shares are of the items."""

    items: int
    accounts: int = 6
    partitions: int = 1
    merchants: int = 6
    pace_ms: int = 40 * 60_000
    busy: float = 0.0
    """Share of events of the first account."""
    late: float = 0.12
    duplicates: float = 0.06
    labels: float = 0.15
    idle: float = 0.01


class Writer:
    """Appends to a log as the producers would: rising offsets with gaps, labels of earlier events."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self.random, self.shape = random.Random(seed), shape
        self.log: list[Item] = []
        self.now_ms = START_MS + self.random.randrange(DAY_MS)
        self.offsets: dict[tuple[str, int], int] = {}
        self.events: dict[str, list[Event]] = {}
        self.labelled: dict[str, list[Label]] = {}

    def offset(self, topic: str, partition: int) -> int:
        """The next offset; now and then one is skipped, as transaction markers do."""
        offset = self.offsets.get((topic, partition), 0)
        self.offsets[topic, partition] = offset + (1 if self.random.random() < 0.8 else 2)
        return offset

    def event(self) -> None:
        draw, shape = self.random, self.shape
        if draw.random() < shape.idle:
            self.now_ms += 31 * DAY_MS
        self.now_ms += int(draw.expovariate(1 / shape.pace_ms)) if draw.random() > 0.05 else 0
        late = draw.choice((1, 30_000, HOUR_MS, 20 * HOUR_MS, 2 * DAY_MS)) if draw.random() < shape.late else 0
        busy = draw.random() < shape.busy
        self.append(account=f"a{0 if busy else draw.randrange(shape.accounts)}", time_ms=self.now_ms - late)

    def append(self, account: str, time_ms: int, **given: Any) -> Event:
        draw = self.random
        partition = sum(account.encode()) % self.shape.partitions
        placed = draw.random() < 0.7
        event = Event(
            partition=partition,
            offset=self.offset("transactions", partition),
            time_ms=time_ms,
            amount_minor=-1 if draw.random() < 0.07 else int(draw.lognormvariate(8, 1.5)),
            account=account,
            event_id=f"e{len(self.log)}",
            entities={
                "merchant": f"m{draw.randrange(self.shape.merchants)}",
                "terminal": self.maybe(0.5, lambda: f"t{draw.randrange(4)}"),
                "device": self.maybe(0.5, lambda: f"d{account}{draw.randrange(2)}"),
                "ip": self.maybe(0.5, lambda: f"10.0.0.{draw.randrange(3)}"),
            },
            categories={c.field: draw.choice((0, 1, 2, c.buckets)) for c in DOMAIN.categories},
            latitude=draw.uniform(-89, 89) if placed else None,
            longitude=draw.uniform(-180, 180) if placed and draw.random() < 0.95 else None,
            numbers={"attributes.balance": draw.choice((None, -5.0, 0.0, 1234.5))},
        )
        event = replace(event, **given)
        self.log.append(event)
        self.events.setdefault(account, []).append(event)
        return event

    def maybe(self, share: float, make: Callable[[], str]) -> str | None:
        return make() if self.random.random() < share else None

    def duplicate(self) -> None:
        """The same event again; at times from just before or just after its id is forgotten.

        Not from before an idle time: then a label could mean an event of either life of the account, and
        the norm, which keeps no single events, cannot tell.
        """
        past = self.events.get(self.random.choice(list(self.events)), []) if self.events else []
        past = [event for event in past if event.time_ms > self.now_ms - 25 * DAY_MS]
        if past:
            back = min(self.random.choice((1, 2, 5, 63, 64, 65)), len(past))
            self.log.append(replace(past[-back], offset=self.offset("transactions", past[-back].partition)))

    def label(self) -> None:
        """A verdict on a recent event, at times repeated or revised."""
        if not self.events:
            return
        draw = self.random
        account = draw.choice(list(self.events))
        told = self.labelled.setdefault(account, [])
        if told and draw.random() < 0.4:
            old = draw.choice(told[-8:])
            latest = [label for label in told if label.event_id == old.event_id][-1]
            self.verdict(replace(latest, fraud=latest.fraud ^ (draw.random() < 0.5)))
        else:
            event = draw.choice(self.events[account][-80:])
            if event.event_id not in {label.event_id for label in told}:
                self.verdict(label_of(event, fraud=draw.random() < 0.6))

    def verdict(self, label: Label) -> None:
        known_ms = self.now_ms + self.random.randrange(2 * HOUR_MS)
        label = replace(label, offset=self.offset("labels", label.partition), known_ms=known_ms)
        self.log.append(label)
        self.labelled.setdefault(label.account, []).append(label)


def label_of(event: Event, *, fraud: bool) -> Label:
    return Label(
        partition=event.partition,
        offset=0,
        time_ms=event.time_ms,
        known_ms=0,
        fraud=fraud,
        amount_minor=event.amount_minor,
        account=event.account,
        event_id=event.event_id,
        entities=event.entities,
    )


def random_log(seed: int, shape: Shape) -> list[Item]:
    """A log of about `shape.items` items, the same for the same arguments."""
    writer = Writer(seed, shape)
    for _ in range(shape.items):
        kind = writer.random.random()
        if kind < shape.labels:
            writer.label()
        elif kind < shape.labels + shape.duplicates:
            writer.duplicate()
        else:
            writer.event()
    return writer.log


def state(accounts: int = 128, entities: int = 128, domain: Domain = DOMAIN) -> FeatureState:
    return FeatureState(domain, accounts=accounts, entities=entities)


def event_batch(events: Sequence[Event], domain: Domain = DOMAIN) -> EventBatch:
    return EventBatch(
        events=[{} for _ in events],
        partition=np.array([e.partition for e in events], np.int32),
        offset=np.array([e.offset for e in events], np.int64),
        time_ms=np.array([e.time_ms for e in events], np.int64),
        amount_minor=np.array([e.amount_minor for e in events], np.int64),
        accounts=[e.account for e in events],
        event_hash=hash_ids([e.event_id for e in events]),
        entities={entity.name: [e.entities[entity.name] for e in events] for entity in domain.entities},
        categories={c.field: np.array([e.categories[c.field] for e in events], np.int16) for c in domain.categories},
        latitude=np.array([e.latitude for e in events], np.float64),
        longitude=np.array([e.longitude for e in events], np.float64),
        numbers={field: np.array([e.numbers[field] for e in events], np.float64) for field in domain.numbers},
    )


def label_batch(labels: Sequence[Label], domain: Domain = DOMAIN) -> LabelBatch:
    return LabelBatch(
        partition=np.array([x.partition for x in labels], np.int32),
        offset=np.array([x.offset for x in labels], np.int64),
        time_ms=np.array([x.time_ms for x in labels], np.int64),
        known_ms=np.array([x.known_ms for x in labels], np.int64),
        fraud=np.array([x.fraud for x in labels], np.bool_),
        amount_minor=np.array([x.amount_minor for x in labels], np.int64),
        accounts=[x.account for x in labels],
        event_hash=hash_ids([x.event_id for x in labels]),
        entities={entity.name: [x.entities[entity.name] for x in labels] for entity in domain.entities},
    )


def cut(log: Sequence[Item], sizes: Iterable[int]) -> Iterator[list[Item]]:
    """The log in batches of at most these sizes; a batch never mixes events and labels."""
    endless = iter(sizes)
    batch: list[Item] = []
    size = next(endless)
    for item in log:
        if batch and (len(batch) >= size or type(batch[0]) is not type(item)):
            yield batch
            batch, size = [], next(endless)
        batch.append(item)
    if batch:
        yield batch


def fixed(size: int) -> Iterator[int]:
    while True:
        yield size


def varied(seed: int, largest: int = 60) -> Iterator[int]:
    draw = random.Random(seed)
    while True:
        yield draw.randint(1, largest)


def fold(state: FeatureState, items: Sequence[Item], outputs: dict[tuple[int, int], Output]) -> None:
    """Folds one batch of events or of labels; what came out of each event goes to `outputs` by its origin."""
    if isinstance(items[0], Label):
        state.fold_labels(label_batch([x for x in items if isinstance(x, Label)], state.domain))
        return
    events = [e for e in items if isinstance(e, Event)]
    assembled = state.assemble(event_batch(events, state.domain))
    for i, event in enumerate(events):
        outputs[event.partition, event.offset] = output_of(assembled, i)


def output_of(assembled: Assembled, i: int) -> Output:
    names = ("steps", "lengths", "aggregates", "duplicate", "late", "saturated", "shared")
    return {name: getattr(assembled, name)[i].copy() for name in names}


def run(state: FeatureState, log: Sequence[Item], sizes: Iterable[int]) -> dict[tuple[int, int], Output]:
    """The whole log through `state`, all rows in memory."""
    outputs: dict[tuple[int, int], Output] = {}
    for items in cut(log, sizes):
        state.next_turn()
        admit_new(state, items)
        fold(state, items, outputs)
    return outputs


def admit_new(state: FeatureState, items: Sequence[Item]) -> None:
    state.admit_new(batch_of(state, items))


def batch_of(state: FeatureState, items: Sequence[Item]) -> EventBatch | LabelBatch:
    if isinstance(items[0], Label):
        return label_batch([x for x in items if isinstance(x, Label)], state.domain)
    return event_batch([e for e in items if isinstance(e, Event)], state.domain)


def packed(state: FeatureState) -> dict[tuple[str, int, str], bytes]:
    """Every row in memory as bytes, by kind, partition and identity."""
    rows = {}
    for pool in state.pools():
        partitions = sorted({int(p) for p in pool.partition_of(np.arange(pool.capacity)) if p >= 0})
        for partition in partitions:
            slots = pool.slots_of(partition)
            for slot, row in zip(slots.tolist(), state.pack(pool.kind, slots), strict=True):
                rows[pool.kind, partition, pool.identity[slot]] = row
    return rows


def same_bits(one: Mapping[Any, Output], other: Mapping[Any, Output]) -> bool:
    """Equal keys and equal bytes; NaNs must have the same bits too."""
    return one.keys() == other.keys() and all(
        one[key][name].tobytes() == other[key][name].tobytes() for key in one for name in one[key]
    )
