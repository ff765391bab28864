"""Events and their labels in columns, and their wire forms.

The reader of history files and the simulator both make `HistoryBatch`es, so what trains a model, what
is replayed through Kafka and what is scored offline are one thing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from pydantic_core import to_json

from stream.features.batch import F64, I64

Text = NDArray[np.object_]
"""(B,) of str; None where the value is missing."""
Rows = NDArray[Any] | slice

UNKNOWN = -1
"""`HistoryBatch.fraud` of an event without a label."""
NEVER_MS = 2**62
"""`HistoryBatch.known_ms` of an event without a label."""

_NONE = np.array(None, dtype=object)


@dataclass(frozen=True)
class WireContract:
    """What a batch must know of a domain's wire schemas: names and kinds of fields, no values."""

    time_field: str
    text_fields: tuple[str, ...]
    number_fields: tuple[str, ...]
    required: frozenset[str]
    label_fields: tuple[str, ...]
    """The event's fields that a label repeats, so that folding it needs no look-up."""
    event: type[BaseModel]

    @classmethod
    def of(cls, event: type[BaseModel], label: type[BaseModel], time_field: str = "timestamp") -> WireContract:
        """Read off the pydantic models: a field that takes a float is a number, other scalars are text."""
        names = [name for name in event.model_fields if name not in (time_field, "attributes")]
        numbers = tuple(name for name in names if _takes_a_number(event.model_fields[name].annotation))
        return cls(
            time_field=time_field,
            text_fields=tuple(name for name in names if name not in numbers),
            number_fields=numbers,
            required=frozenset(name for name, info in event.model_fields.items() if info.is_required()),
            label_fields=tuple(name for name in event.model_fields if name in label.model_fields),
            event=event,
        )


def _takes_a_number(annotation: Any) -> bool:
    return annotation in (float, int) or any(_takes_a_number(argument) for argument in get_args(annotation))


@dataclass(frozen=True, slots=True)
class HistoryBatch:
    """B events in order of time. Every array is (B,)."""

    contract: WireContract
    time_ms: I64
    text: dict[str, Text]
    """By wire field; a field that the history lacks is absent."""
    numbers: dict[str, F64]
    """By wire field; NaN is missing. Amounts are in major units of the event's currency."""
    fraud: NDArray[np.int8]
    """1 fraud, 0 genuine, UNKNOWN."""
    known_ms: I64
    """When the label became known; NEVER_MS where it is unknown."""
    attributes: dict[str, Text] = field(default_factory=dict)
    label_source: str = "history"
    scenario: Text | None = None
    """Simulated history only: the name of the fraud scenario, None for a genuine event. Not on the wire."""

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, rows: Rows) -> HistoryBatch:
        """The events at these indices, or of this slice, in that order."""
        return replace(
            self,
            time_ms=self.time_ms[rows],
            text={name: values[rows] for name, values in self.text.items()},
            numbers={name: values[rows] for name, values in self.numbers.items()},
            fraud=self.fraud[rows],
            known_ms=self.known_ms[rows],
            attributes={name: values[rows] for name, values in self.attributes.items()},
            scenario=None if self.scenario is None else self.scenario[rows],
        )

    def events(self) -> list[dict[str, Any]]:
        """The events as the wire carries them; a missing value is an absent field."""
        columns = {**self.text, self.contract.time_field: _time_texts(self.time_ms)}
        columns |= {name: _without_nan(values) for name, values in self.numbers.items()}
        events = _rows(columns)
        if self.attributes:
            for event, attributes in zip(events, _rows(self.attributes), strict=True):
                if attributes:
                    event["attributes"] = attributes
        return events

    def events_json(self) -> list[bytes]:
        """`events`, each as UTF-8 JSON."""
        return [wire_json(event) for event in self.events()]

    def labels(self) -> list[dict[str, Any]]:
        """The label messages of the events that have a label, in the events' order."""
        labelled = self.take(np.flatnonzero(self.fraud != UNKNOWN))
        names = [name for name in self.contract.label_fields if name in labelled.text]
        columns = {name: labelled.text[name] for name in names}
        columns[self.contract.time_field] = _time_texts(labelled.time_ms)
        columns |= {n: _without_nan(v) for n, v in labelled.numbers.items() if n in self.contract.label_fields}
        columns["fraud"] = (labelled.fraud == 1).astype(object)
        columns["labelled_at"] = _time_texts(labelled.known_ms)
        return [label | {"source": self.label_source} for label in _rows(columns)]

    def label_event(self, row: int) -> dict[str, Any]:
        """The label message of one event. ValueError if it has no label."""
        if self.fraud[row] == UNKNOWN:
            raise ValueError(f"event at row {row} has no label")
        return self.take(slice(row, row + 1)).labels()[0]


def wire_json(message: dict[str, Any]) -> bytes:
    """An event or a label as UTF-8 JSON."""
    return to_json(message)


def concatenate(batches: Sequence[HistoryBatch]) -> HistoryBatch:
    """One batch of several, at least one, that have the same columns."""
    first = batches[0]
    scenarios = [batch.scenario for batch in batches if batch.scenario is not None]
    return replace(
        first,
        time_ms=np.concatenate([batch.time_ms for batch in batches]),
        text={name: np.concatenate([batch.text[name] for batch in batches]) for name in first.text},
        numbers={name: np.concatenate([batch.numbers[name] for batch in batches]) for name in first.numbers},
        fraud=np.concatenate([batch.fraud for batch in batches]),
        known_ms=np.concatenate([batch.known_ms for batch in batches]),
        attributes={name: np.concatenate([batch.attributes[name] for batch in batches]) for name in first.attributes},
        scenario=np.concatenate(scenarios) if scenarios else None,
    )


class LabelQueue:
    """Labels that wait until they become known: filled as events pass, emptied as time passes.

    `verdicts`: "fraud" keeps the confirmed frauds alone (what chargebacks are), "all" every label.
    """

    def __init__(self, verdicts: Literal["fraud", "all"] = "fraud") -> None:
        self._verdicts = verdicts
        self._heap: list[tuple[int, int, dict[str, Any]]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def waiting(self) -> list[tuple[int, dict[str, Any]]]:
        """The waiting labels in the order in which `pop` gives them, each after the time it becomes known."""
        return [(known_ms, label) for known_ms, _, label in sorted(self._heap, key=lambda entry: entry[:2])]

    def push(self, batch: HistoryBatch) -> None:
        """Enqueues the batch's labels."""
        wanted = batch.fraud == 1 if self._verdicts == "fraud" else batch.fraud != UNKNOWN
        chosen = batch.take(np.flatnonzero(wanted))
        for known_ms, label in zip(chosen.known_ms.tolist(), chosen.labels(), strict=True):
            heapq.heappush(self._heap, (known_ms, self._pushed, label))
            self._pushed += 1

    def pop(self, until_ms: int) -> list[dict[str, Any]]:
        """The labels known at `until_ms` or before, in order of that time, then of pushing."""
        known = []
        while self._heap and self._heap[0][0] <= until_ms:
            known.append(heapq.heappop(self._heap)[2])
        return known


def is_missing(values: Text) -> NDArray[np.bool_]:
    """(B,): where the value is None."""
    missing: NDArray[np.bool_] = np.equal(values, _NONE).astype(np.bool_)
    return missing


def _time_texts(time_ms: I64) -> Text:
    """RFC 3339 in UTC with milliseconds: 2026-11-23T16:38:12.123Z."""
    return np.datetime_as_string(time_ms.astype("datetime64[ms]"), timezone="UTC").astype(object)


def _without_nan(values: F64) -> Text:
    objects: Text = values.astype(object)
    objects[np.isnan(values)] = None
    return objects


def _rows(columns: dict[str, Text]) -> list[dict[str, Any]]:
    """Columns as one dict per row. Columns without gaps go through one zip; the others are filled in."""
    gaps = {name: is_missing(values) for name, values in columns.items()}
    full = [name for name in columns if not gaps[name].any()]
    rows: list[dict[str, Any]]
    if full:
        rows = [
            dict(zip(full, row, strict=True)) for row in zip(*(columns[name].tolist() for name in full), strict=True)
        ]
    else:
        rows = [{} for _ in range(len(next(iter(columns.values()))))]
    for name in [name for name in columns if name not in full]:
        present = np.flatnonzero(~gaps[name])
        for row, value in zip(present.tolist(), columns[name][present].tolist(), strict=True):
            rows[row][name] = value
    return rows


def iterate_slices(batch: HistoryBatch, rows: int) -> Iterable[HistoryBatch]:
    """The batch in pieces of at most `rows` events."""
    return (batch.take(slice(start, start + rows)) for start in range(0, len(batch), rows))
