"""The words a domain declaration is written in: entities, categories, features, and their identity.

A `Domain` holds no logic: it serialises to canonical JSON, and the SHA-256 of what decides the rows
and the vectors is its `spec_id`. Two domains with one `spec_id` make the same features bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from pydantic import BaseModel

from stream.errors import ConfigError

_UNIT_MS = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
MAX_CATEGORY_CODE = 2047
"""float16, in which step vectors are cached, holds the integers up to here exactly."""


@functools.cache
def window_ms(window: str) -> int:
    """'10min', '1h', '7d' in milliseconds. ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)(s|min|h|d)", window)
    if match is None:
        raise ConfigError(f"window {window!r}: write a number and a unit of s, min, h or d, such as '10min' or '7d'")
    return int(match.group(1)) * _UNIT_MS[match.group(2)]


@dataclass(frozen=True, slots=True)
class Column:
    """One float of a step vector or of the aggregates.

    `cardinality` 0: a number. Above 0: a category code in [0, cardinality), 0 meaning missing or unknown.
    `log`: not negative and spread over decades, so a model should look at ln(1 + x).
    `group` is what an explanation speaks of: the columns of one group are attributed together.
    """

    name: str
    group: str
    cardinality: int = 0
    log: bool = False


class Feature(Protocol):
    """A declared operator: a frozen dataclass of plain values, so that it serialises.

    How it computes is in `operators/`; the declaration needs only its columns.
    """

    @property
    def columns(self) -> tuple[Column, ...]: ...


@dataclass(frozen=True, slots=True)
class Entity:
    """Something that accounts share: a merchant, a terminal. `windows` are what is kept for it.

    A window up to a day is kept in sixteen tiles; a longer one must be whole days and is kept by the day.
    """

    name: str
    field: str
    windows: tuple[str, ...] = ("1h", "24h", "7d", "30d")


@dataclass(frozen=True, slots=True)
class Category:
    """A text field as a code: crc32 of the text, modulo `buckets`, plus one; 0 when it is missing.

    `attributes.NAME` is a member of the event's `attributes`.
    """

    field: str
    buckets: int

    def __post_init__(self) -> None:
        if not 1 <= self.buckets <= MAX_CATEGORY_CODE:
            raise ConfigError(f"category {self.field!r}: buckets must be 1 to {MAX_CATEGORY_CODE}, not {self.buckets}")


@dataclass(frozen=True, slots=True)
class ReasonTemplate:
    """Words for a group of features. `text` is a str.format template over aggregate column names.

    Several templates may serve one group: the first whose columns are all present (not NaN) and whose
    `when` bounds hold is used; `when` maps a column name to an inclusive (low, high) range.
    """

    code: str
    group: str
    text: str
    when: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class Domain:
    """Everything that differs between payments and another use of the engine."""

    name: str
    event: type[BaseModel]
    label: type[BaseModel]
    entities: tuple[Entity, ...]
    categories: tuple[Category, ...]
    step: tuple[Feature, ...]
    aggregates: tuple[Feature, ...]
    base_currency: str
    sequence_length: int = 16
    windows: tuple[str, ...] = ("10min", "1h", "24h", "7d", "30d")
    label_delay: str = "7d"
    """By then a fraud is usually confirmed: an older event without a verdict counts as genuine."""
    numbers: tuple[str, ...] = ()
    """Number fields that features use beside the amount; `attributes.NAME` is a member of `attributes`."""
    event_id_field: str = "event_id"
    account_field: str = "account_id"
    time_field: str = "timestamp"
    amount_field: str = "amount"
    currency_field: str = "currency"
    latitude_field: str = "latitude"
    longitude_field: str = "longitude"
    label_time_field: str = "labelled_at"
    reasons: tuple[ReasonTemplate, ...] = field(default=())
    alert_rate: float = 0.005

    @cached_property
    def step_columns(self) -> tuple[Column, ...]:
        """The F columns of a step vector, in order."""
        return _columns(self.step)

    @cached_property
    def aggregate_columns(self) -> tuple[Column, ...]:
        """The D columns of the aggregates, in order."""
        return _columns(self.aggregates)

    def canonical(self) -> dict[str, Any]:
        """What decides rows and vectors, as plain values. Words and policy defaults are left out."""
        left_out = {"event", "label", "reasons", "alert_rate"}
        names = [f.name for f in dataclasses.fields(self) if f.name not in left_out]
        return {"layout": 2} | {name: _plain(getattr(self, name)) for name in names}

    @cached_property
    def spec_id(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _columns(features: Sequence[Feature]) -> tuple[Column, ...]:
    columns = tuple(column for feature in features for column in feature.columns)
    names = [column.name for column in columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"features declare the columns {repeated} more than once")
    return columns


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    return value
