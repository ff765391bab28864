"""A training set: every step vector once, and for each event the indices of its account's last T events.

Sequences are gathered when a batch is made, which takes a sixteenth of the memory of storing them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.errors import ConfigError
from stream.features.batch import NO_AMOUNT, Assembled, EventBatch
from stream.features.spec import Domain

UNKNOWN, GENUINE, FRAUD = -1, 0, 1
"""Values of a label."""

_ARRAYS = ("steps", "predecessors", "aggregates", "label", "time_ms", "known_ms", "account", "amount")
_SEGMENT_NAMES = 1_000
"""A field with more values than this is kept with all further ones as OTHER."""

OTHER, MISSING = "(other)", "(none)"


class ReplayedBatch(NamedTuple):
    """What the replay of a history gives per batch; arrays are aligned with the events."""

    events: EventBatch
    assembled: Assembled
    label: NDArray[np.int8]
    known_ms: NDArray[np.int64]
    texts: Mapping[str, NDArray[np.object_]] = {}
    """Fields that a report is to be split by: name -> (B,) str or None."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A text field of every event, as a report splits its figures by it."""

    code: NDArray[np.int16]
    """(N,): position in `names`."""
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """N events in arrival order, duplicates left out."""

    domain: Domain
    steps: NDArray[np.float16] | NDArray[np.float32]
    """(N, F): each event's own step vector; float16 where that holds every value exactly."""
    predecessors: NDArray[np.int32]
    """(N, T): indices of the account's last events up to and with this one, oldest first; -1 after them."""
    aggregates: NDArray[np.float32]
    """(N, D)"""
    label: NDArray[np.int8]
    """(N,): UNKNOWN, GENUINE or FRAUD"""
    time_ms: NDArray[np.int64]
    """(N,): event time"""
    known_ms: NDArray[np.int64]
    """(N,): when the label became known; without meaning where it is UNKNOWN"""
    account: NDArray[np.int32]
    """(N,): a number for each account, in order of appearance"""
    amount: NDArray[np.float32]
    """(N,): in the domain's base currency; NaN where it had no rate"""
    segments: Mapping[str, Segment] = field(default_factory=dict)
    """By field. Not among what a net may read."""

    def __len__(self) -> int:
        return len(self.label)

    def sequences(self, index: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Steps (B,T,F), zeros after the lengths, and lengths (B,) of these events, as Assembled has them."""
        chosen = self.predecessors[index]
        valid = chosen >= 0
        steps = self.steps[np.maximum(chosen, 0)].astype(np.float32)
        steps[~valid] = 0.0
        return steps, valid.sum(axis=1, dtype=np.int64)

    def fingerprint(self) -> str:
        """SHA-256 over all arrays but the segments, and the spec_id: the same history and features give the same."""
        digest = hashlib.sha256(self.domain.spec_id.encode())
        for name in _ARRAYS:
            array: NDArray[Any] = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.view(np.uint8).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes one .npz, replaced in one step. Blocks."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        for name, segment in self.segments.items():
            arrays |= {f"code.{name}": segment.code, f"names.{name}": np.array(segment.names)}
        temporary = path.with_name(path.name + ".partial")
        with temporary.open("wb") as file:
            np.savez(file, spec_id=np.array(self.domain.spec_id), **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, domain: Domain) -> TrainingSet:
        """Reads what `save` wrote. ConfigError when it was made for another spec_id or is no training set."""
        try:
            with np.load(path, allow_pickle=False) as file:
                spec_id, arrays = str(file["spec_id"]), {name: file[name] for name in _ARRAYS}
                fields = [name.removeprefix("code.") for name in file.files if name.startswith("code.")]
                segments = {
                    name: Segment(file[f"code.{name}"], tuple(file[f"names.{name}"].tolist())) for name in fields
                }
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"training set {path}: {error}") from None
        if spec_id != domain.spec_id:
            raise ConfigError(f"training set {path}: made for spec_id {spec_id}, the domain is {domain.spec_id}")
        return cls(domain=domain, segments=segments, **arrays)


def predecessors(
    account: NDArray[np.int32], sequence_length: int, lengths: NDArray[np.int64] | None = None
) -> NDArray[np.int32]:
    """(N, T) indices of each account's last events up to and with each event, oldest first, -1 after them.

    `account` (N,) is in arrival order. `lengths` (N,), when given, says how many the features saw: fewer than
    there were when an account's idle state had expired.
    """
    count = len(account)
    order = np.argsort(account, kind="stable")
    place = np.arange(count)
    ordered = account[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if count else place
    first = np.repeat(starts, np.diff(np.r_[starts, count]))
    taken = np.minimum(place - first + 1, sequence_length)
    if lengths is not None:
        taken = np.minimum(taken, lengths[order])
    result = np.full((count, sequence_length), -1, dtype=np.int32)
    for column in range(sequence_length):
        rows = np.flatnonzero(column < taken)
        result[order[rows], column] = order[rows - taken[rows] + 1 + column]
    return result


def build(domain: Domain, batches: Iterable[ReplayedBatch]) -> TrainingSet:
    """Collects replayed batches, in arrival order, into a training set. ConfigError when they hold no event."""
    codes: dict[str, int] = {}
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*_ARRAYS, "lengths") if name != "predecessors"}
    segments = _Segments()
    for events, assembled, label, known_ms, texts in batches:
        keep = np.flatnonzero(~assembled.duplicate)
        account = np.fromiter((codes.setdefault(a, len(codes)) for a in events.accounts), np.int32, len(events))
        own = assembled.steps[keep, assembled.lengths[keep] - 1]
        columns = {
            "steps": _compact(own),
            "lengths": assembled.lengths[keep],
            "aggregates": assembled.aggregates[keep].astype(np.float32),
            "label": label[keep].astype(np.int8),
            "time_ms": events.time_ms[keep],
            "known_ms": known_ms[keep],
            "account": account[keep],
            "amount": np.where(events.amount_minor == NO_AMOUNT, np.nan, events.amount_minor / 100.0)[keep].astype(
                np.float32
            ),
        }
        segments.add({name: values[keep] for name, values in texts.items()}, len(keep))
        for name, column in columns.items():
            parts[name].append(column)
    if not sum(len(column) for column in parts["label"]):
        raise ConfigError("the history holds no event to train on")
    # Joined one by one and let go: at most one column is in memory twice.
    arrays = {name: np.concatenate(parts.pop(name)) for name in tuple(parts)}
    lengths = arrays.pop("lengths")
    links = predecessors(arrays["account"], domain.sequence_length, lengths)
    return TrainingSet(domain=domain, predecessors=links, segments=segments.built(), **arrays)


class _Segments:
    """Collects text fields as codes. A field that a batch lacks is missing there."""

    def __init__(self) -> None:
        self._events = 0
        self._names: dict[str, dict[str, int]] = {}
        self._codes: dict[str, list[NDArray[np.int16]]] = {}

    def add(self, texts: Mapping[str, NDArray[np.object_]], count: int) -> None:
        for name in texts.keys() - self._names.keys():
            self._names[name] = {MISSING: 0, OTHER: 1}
            self._codes[name] = [np.zeros(self._events, np.int16)]
        for name, known in self._names.items():
            values = texts[name].tolist() if name in texts else [None] * count
            codes = [
                0 if v is None else known.setdefault(v, len(known)) if len(known) < _SEGMENT_NAMES else known.get(v, 1)
                for v in values
            ]
            self._codes[name].append(np.array(codes, np.int16))
        self._events += count

    def built(self) -> dict[str, Segment]:
        return {name: Segment(np.concatenate(self._codes[name]), tuple(known)) for name, known in self._names.items()}


def _compact(values: NDArray[np.float32]) -> NDArray[np.float16] | NDArray[np.float32]:
    """float16 if that loses nothing (rows cache step vectors in float16), else float32."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float16)
    return small if np.array_equal(small.astype(np.float32), values, equal_nan=True) else values
