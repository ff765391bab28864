"""From validated events (dicts) to the columns of a batch: the last step that looks at single values."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import EventBatch, LabelBatch
from stream.features.spec import Category, Domain

MAX_AMOUNT_MINOR = 10**15
"""Larger amounts count as this much, so that no sum of a window leaves int64."""

MAX_NUMBER = 1e15
"""A number of an attribute beyond this says nothing that float32 could carry to a model."""


class MoneyConverter(Protocol):
    """Amounts in major units of some currency to 1/100 of the base currency; -1 without a rate."""

    def to_minor(self, amounts: NDArray[np.float64], currencies: list[str]) -> NDArray[np.int64]: ...


class ColumnBuilder:
    """Makes EventBatch and LabelBatch for one domain. Category codes are remembered by text."""

    def __init__(self, domain: Domain, money: MoneyConverter) -> None:
        self._domain = domain
        self._money = money
        self._codes: dict[str, dict[str | None, int]] = {c.field: {None: 0} for c in domain.categories}

    def events(
        self,
        events: list[dict[str, Any]],
        time_ms: NDArray[np.int64],
        partition: NDArray[np.int32],
        offset: NDArray[np.int64],
    ) -> EventBatch:
        """B events with their event times and origins as columns, in the order given."""
        domain = self._domain
        return EventBatch(
            events=events,
            partition=partition,
            offset=offset,
            time_ms=time_ms,
            amount_minor=self._amounts(events),
            accounts=[event[domain.account_field] for event in events],
            event_hash=hash_ids([event[domain.event_id_field] for event in events]),
            entities=self._entities(events),
            categories={c.field: self._category(c, events) for c in domain.categories},
            latitude=_numbers(events, domain.latitude_field),
            longitude=_numbers(events, domain.longitude_field),
            numbers={field: _plain_numbers(_values(events, field)) for field in domain.numbers},
        )

    def labels(
        self,
        labels: list[dict[str, Any]],
        time_ms: NDArray[np.int64],
        known_ms: NDArray[np.int64],
        partition: NDArray[np.int32],
        offset: NDArray[np.int64],
    ) -> LabelBatch:
        """L labels as columns. A label repeats the identity of its event, so nothing is looked up."""
        domain = self._domain
        return LabelBatch(
            partition=partition,
            offset=offset,
            time_ms=time_ms,
            known_ms=known_ms,
            fraud=np.array([label["fraud"] for label in labels], dtype=np.bool_),
            amount_minor=self._amounts(labels),
            accounts=[label[domain.account_field] for label in labels],
            event_hash=hash_ids([label[domain.event_id_field] for label in labels]),
            entities=self._entities(labels),
        )

    def _amounts(self, events: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
        domain = self._domain
        amounts = np.array([event[domain.amount_field] for event in events], dtype=np.float64)
        minor = self._money.to_minor(amounts, [event[domain.currency_field] for event in events])
        return np.minimum(minor, MAX_AMOUNT_MINOR)

    def _entities(self, events: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
        return {e.name: [event.get(e.field) for event in events] for e in self._domain.entities}

    def _category(self, category: Category, events: Sequence[Mapping[str, Any]]) -> NDArray[np.int16]:
        known, field = self._codes[category.field], category.field
        texts = _texts(events, field)
        codes = [known.get(text, -1) for text in texts]
        if -1 in codes:
            codes = [category_code(text, category.buckets) for text in texts]
            if len(known) < 100_000:  # a field with endless values must not fill the memory
                known.update(zip(texts, codes, strict=True))
        return np.array(codes, dtype=np.int16)


def category_code(text: str | None, buckets: int) -> int:
    """0 for a missing value, else 1 to `buckets`: crc32 of the text in UTF-8."""
    return 0 if text is None else zlib.crc32(str(text).encode()) % buckets + 1


def hash_ids(ids: Sequence[str]) -> NDArray[np.uint64]:
    """First 8 bytes of BLAKE2b of each id, little-endian: (B,)."""
    digests = b"".join([hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _values(events: Sequence[Mapping[str, Any]], field: str) -> list[Any]:
    """A field's values, or those of a member of `attributes`; None where it is missing."""
    head, dot, name = field.partition(".")
    if not dot:
        return [event.get(field) for event in events]
    return [members.get(name) if isinstance(members := event.get(head), Mapping) else None for event in events]


def _texts(events: Sequence[Mapping[str, Any]], field: str) -> list[str | None]:
    """A field as text. Attributes may hold anything: a number or a truth value counts as its JSON text."""
    values = _values(events, field)
    if "." not in field:
        return values
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _plain_numbers(values: list[Any]) -> NDArray[np.float64]:
    """Numbers and truth values up to 1e15 in size; everything else is missing."""
    found = [value if isinstance(value, int | float) and abs(value) <= MAX_NUMBER else math.nan for value in values]
    return np.array(found, dtype=np.float64)


def _numbers(events: Sequence[Mapping[str, Any]], field: str) -> NDArray[np.float64]:
    return np.array([event.get(field) for event in events], dtype=np.float64)  # None becomes NaN
