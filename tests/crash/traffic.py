"""Seeded input for the crash tests: payments with duplicates, late events, poison, labels, and gaps in the offsets."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stream.events.moments import moment_text
from stream.kafka.partitioner import partition_for

START_MS = 1_700_000_000_000
"""When the tests' clock begins. Events lie before it, so that none is from the future."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
EXPECTED = "expected"
"""Header of poison: what the checker must find. It does not decode messages itself."""

_LATE = (1, 30_000, HOUR_MS, 30 * HOUR_MS)
_LABEL_FIELDS = ("event_id", "account_id", "timestamp", "amount", "currency", "merchant_id", "device_id")


@dataclass(frozen=True, slots=True)
class Item:
    """One message for `topic` ("transactions" or "labels")."""

    topic: str
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is published at once. `end` "plain": no transaction; else the producer's transaction commits or aborts."""

    items: tuple[Item, ...]
    end: str = "plain"


class Traffic:
    """Writes the messages of a few accounts. Merchants and devices belong to one partition."""

    def __init__(
        self,
        seed: int,
        partitions: int,
        *,
        published_ms: int = START_MS,
        accounts_each: int = 5,
        mean_gap_ms: float = 8 * 60_000,
    ) -> None:
        """`published_ms`: Kafka's time; the events lie in the 60 days before it, so far apart on average."""
        self.random, self.partitions = random.Random(seed), partitions
        self.now_ms = published_ms - 60 * DAY_MS
        self.made = 0
        self.past: dict[str, list[dict[str, Any]]] = {}
        self.verdicts: dict[str, bool] = {}
        self.accounts = self._accounts(accounts_each)
        self._published_ms, self._mean_gap_ms = published_ms, mean_gap_ms

    def _accounts(self, each: int) -> list[str]:
        """So many accounts in every partition; the first of each partition comes first."""
        found: list[list[str]] = [[] for _ in range(self.partitions)]
        number = 0
        while any(len(names) < each for names in found):
            names = found[partition_for(b"a%d" % number, self.partitions)]
            if len(names) < each:
                names.append(f"a{number}")
            number += 1
        return [name for names in zip(*found, strict=True) for name in names]

    def chunks(self, events: int, *, labels: float = 0.12, size: int = 12) -> list[Chunk]:
        """About so many messages, in chunks of up to `size`."""
        chunks = []
        while self.made < events:
            items = tuple(self._item(labels) for _ in range(self.random.randint(1, size)))
            end = self.random.choices(("plain", "commit", "abort"), (0.8, 0.12, 0.08))[0]
            if end == "abort":
                self._forget(items)
            chunks.append(Chunk(items, end))
        return chunks

    def _item(self, labels: float) -> Item:
        self.made += 1
        kind = self.random.random()
        if kind < labels and self.past:
            return self.label()
        if kind < labels + 0.06 and self.past:
            return self._again()
        if kind < labels + 0.11:
            return self.poison()
        return self.event()

    def event(self, account: str | None = None, **given: Any) -> Item:
        """A new payment; half of them are of one busy account per partition."""
        if account is None:
            busy = self.random.random() < 0.5
            account = self.random.choice(self.accounts[: self.partitions] if busy else self.accounts)
        event = self._payment(account) | given
        self.past.setdefault(account, []).append(event)
        return _message("transactions", event)

    def _payment(self, account: str) -> dict[str, Any]:
        draw = self.random
        self.now_ms += int(draw.expovariate(1 / self._mean_gap_ms))
        late = draw.choice(_LATE) if draw.random() < 0.1 else 0
        partition = partition_for(account.encode(), self.partitions)
        return {
            "event_id": f"e{self.made}-{draw.randrange(10**6)}",
            "account_id": account,
            "timestamp": moment_text(self.now_ms - late),
            "amount": round(draw.lognormvariate(3, 1.2), 2),
            "currency": draw.choice(("USD", "USD", "USD", "XAF")),
            "merchant_id": f"m{partition}-{draw.randrange(4)}",
            "mcc": "5411",
            "country": "US",
            "channel": "pos",
            "device_id": draw.choice((None, f"d{partition}-{draw.randrange(3)}")),
            "note": draw.choice(("passes through", 7, None)),
        }

    def _again(self) -> Item:
        """The same payment again: a duplicate, or, from 64 payments back, forgotten and new."""
        events = self.past[self.random.choice(list(self.past))]
        back = min(self.random.choice((1, 1, 2, 5, 20, 63, 64, 65)), len(events))
        return _message("transactions", events[-back])

    def label(self, event: dict[str, Any] | None = None, *, fraud: bool | None = None) -> Item:
        """A verdict on a recent payment; at times repeated, revised, or not a verdict at all."""
        draw = self.random
        if draw.random() < 0.08 and event is None:
            account = draw.choice(self.accounts)
            return Item("labels", account.encode(), b'{"event_id": 7}', ((EXPECTED, b"dead"),))
        event = event or draw.choice(self.past[draw.choice(list(self.past))][-30:])
        told = self.verdicts.get(event["event_id"])
        fraud = fraud if fraud is not None else draw.random() < 0.6 if told is None else told ^ (draw.random() < 0.5)
        self.verdicts[event["event_id"]] = fraud
        known = {"fraud": fraud, "labelled_at": moment_text(self.now_ms), "source": "analyst"}
        return _message("labels", {name: event[name] for name in _LABEL_FIELDS} | known)

    def poison(self) -> Item:
        """What no event can be."""
        draw = self.random
        account = draw.choice(self.accounts)
        good = self._payment(account)
        value = draw.choice(
            (
                b"not json",
                b"\xff\xfe",
                b"[]",
                None,
                json.dumps(good | {"amount": -5}).encode(),
                json.dumps(good | {"account_id": ""}).encode(),
                json.dumps(good | {"timestamp": moment_text(self._published_ms + 400 * DAY_MS)}).encode(),
                json.dumps(good | {"amount": float("nan")}).encode(),
            )
        )
        return Item("transactions", account.encode(), value, ((EXPECTED, b"dead"), ("traceparent", b"00-ab-cd-01")))

    def _forget(self, items: Sequence[Item]) -> None:
        """The producer aborted these: they are not to be repeated or labelled."""
        gone = {item.value for item in items if item.topic == "transactions"}
        for account, events in list(self.past.items()):
            self.past[account] = [event for event in events if json.dumps(event).encode() not in gone]
            if not self.past[account]:
                del self.past[account]


def _message(topic: str, content: dict[str, Any]) -> Item:
    return Item(topic, content["account_id"].encode(), json.dumps(content).encode())
