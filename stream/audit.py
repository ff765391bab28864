"""Did every event get exactly one outcome? Recomputed from the topics alone, with code of its own.

Of the engine it uses Kafka's port only: records are parsed here, and duplicates are found here, by a slower
and more obvious rule. An outcome is a score, a dead letter, or none where the event repeats one of the last
64 distinct events of its account; anything else is a problem, and each kind of problem has a name.

Memory: ten bytes per event of the log, and a few hundred per account.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from stream.errors import UnavailableError
from stream.kafka.port import Reader, Record, TopicPartition

REMEMBERED = 64
_SCORED, _DEAD, _SUSPICIOUS, _ALERTED, _WITHOUT_HISTORY, _PRESENT = 1, 2, 4, 8, 16, 32
_EXAMPLES = 5
_REDRIVEN = "riskstream-redriven"
_POLL_RECORDS, _POLL_MS, _PATIENCE_S = 2_000, 500, 60.0
_HISTORY_MISSING = frozenset({"cold", "degraded"})

Progress = Callable[[str, int, int], None]
"""(what is read, records so far, offsets to read)."""


class Problem(StrEnum):
    """What breaks the promise."""

    LOST = "lost"
    SCORED_TWICE = "scored_twice"
    DEAD_TWICE = "dead_twice"
    SCORED_AND_DEAD = "scored_and_dead"
    UNKNOWN_ORIGIN = "unknown_origin"
    IDENTITY_CHANGED = "identity_changed"
    DUPLICATE_SCORED = "duplicate_scored"
    OUT_OF_ORDER = "out_of_order"
    ALERT_MISSING = "alert_missing"
    ALERT_TWICE = "alert_twice"
    ALERT_UNFOUNDED = "alert_unfounded"
    UNREADABLE = "unreadable"


MEANINGS: Mapping[Problem, str] = {
    Problem.LOST: "no score, no dead letter, and no repeat of an earlier event",
    Problem.SCORED_TWICE: "more than one score for one event",
    Problem.DEAD_TWICE: "more than one dead letter for one message",
    Problem.SCORED_AND_DEAD: "a score and a dead letter for one message",
    Problem.UNKNOWN_ORIGIN: "an output that names an event that the log does not hold",
    Problem.IDENTITY_CHANGED: "the score's event id, account or time is not its event's",
    Problem.DUPLICATE_SCORED: "a repeat of one of the account's last 64 events was scored again",
    Problem.OUT_OF_ORDER: "an account's scores were not published in the order of its events",
    Problem.ALERT_MISSING: "a suspicious score without an alert",
    Problem.ALERT_TWICE: "more than one alert for one event",
    Problem.ALERT_UNFOUNDED: "an alert without a suspicious score",
    Problem.UNREADABLE: "an output that is not JSON or names no origin",
}


class TopicNames(Protocol):
    """The settings' `topics` section serves."""

    @property
    def transactions(self) -> str: ...
    @property
    def labels(self) -> str: ...
    @property
    def scores(self) -> str: ...
    @property
    def alerts(self) -> str: ...
    @property
    def dead_letters(self) -> str: ...


class ScoreSink(Protocol):
    """Takes every score record as parsed, for a comparison elsewhere."""

    def add(self, score: Mapping[str, Any]) -> None: ...


@dataclass(slots=True)
class PartitionCounts:
    """The outcomes of one input partition."""

    partition: int
    events: int = 0
    scored: int = 0
    duplicates: int = 0
    dead: int = 0
    pending: int = 0
    """Not yet done: at or above the group's committed offset."""
    lost: int = 0

    @property
    def identity_holds(self) -> bool:
        return self.events == self.scored + self.duplicates + self.dead


@dataclass(slots=True)
class Findings:
    """Problems by kind, with a few places of each: topic-partition@offset."""

    counts: dict[Problem, int] = field(default_factory=dict)
    examples: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, problem: Problem, topic: str, partition: object, offset: object) -> None:
        self.counts[problem] = self.counts.get(problem, 0) + 1
        places = self.examples.setdefault(problem, [])
        if len(places) < _EXAMPLES:
            places.append(f"{topic}-{partition}@{offset}")


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What the audit found."""

    partitions: tuple[PartitionCounts, ...]
    alerts: int
    labels_dead: int
    redriven: Mapping[str, int]
    """Of the events: dead letters that were sent again, all of them and by outcome."""
    findings: Findings
    notes: tuple[str, ...]

    def total(self, name: str) -> int:
        """The sum of a count over the partitions."""
        return sum(getattr(counts, name) for counts in self.partitions)

    @property
    def identity_holds(self) -> bool:
        """events = scored + duplicates + dead, in every partition."""
        return all(counts.identity_holds for counts in self.partitions)

    @property
    def exactly_once(self) -> bool:
        """Every event has one outcome, and no output is without its event, repeated, changed or out of order."""
        return not self.findings.counts and self.total("pending") == 0

    def as_json(self) -> dict[str, Any]:
        names = ("events", "scored", "duplicates", "dead", "pending", "lost")
        return {
            **{name: self.total(name) for name in names},
            "alerts": self.alerts,
            "labels_dead": self.labels_dead,
            "redriven": dict(self.redriven),
            "identity_holds": self.identity_holds,
            "exactly_once": self.exactly_once,
            "problems": {
                str(problem): {"count": count, "means": MEANINGS[problem], "examples": self.findings.examples[problem]}
                for problem, count in self.findings.counts.items()
            },
            "partitions": [
                {"partition": c.partition, **{name: getattr(c, name) for name in names}} for c in self.partitions
            ],
            "notes": list(self.notes),
        }


class _Origins:
    """Of one input partition's offsets [first, end): a byte of bits each, and the identity that its score named."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self.bits = bytearray(end - first)
        self.identity = array("q", bytes(8 * (end - first)))


class Auditor:
    """Reads the topics once each. `run` blocks until it has."""

    def __init__(
        self,
        reader: Reader,
        topics: TopicNames,
        partitions: Mapping[str, int],
        *,
        committed: Mapping[int, int] | None = None,
        sink: ScoreSink | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`partitions`: of each topic, by name.

        `committed`: the group's offsets of the transactions by partition, asked for before this is made;
        an event at or above is pending, not lost, and its outputs may be on their way. None: all are done.
        """
        self._reader, self._topics, self._committed = reader, topics, committed
        self._partitions = partitions
        self._sink, self._progress = sink, progress
        self._inputs = {
            topic: [TopicPartition(topic, number) for number in range(partitions[topic])]
            for topic in (topics.transactions, topics.labels)
        }
        # The ends of the inputs before those of the outputs: an output in sight then has its event in sight,
        # or is newer than the audit.
        self._origins = {tp: _Origins(*_range(reader, tp)) for tps in self._inputs.values() for tp in tps}
        self._findings = Findings()
        self._notes: list[str] = []
        self._last_place: dict[int, int] = {}
        self._recent: dict[int, array[int]] = {}
        self._newer: dict[TopicPartition, int] = {}
        self._alerts = 0
        self._redriven = dict.fromkeys(("events", "scored", "duplicates", "dead"), 0)

    def run(self) -> AuditReport:
        """Reads outputs first, then the transactions. UnavailableError, TopicError."""
        topics = self._topics
        for topic, take in (
            (topics.scores, self._take_score),
            (topics.alerts, self._take_alert),
            (topics.dead_letters, self._take_dead_letter),
        ):
            partitions = self._partitions_of(topic)
            for record in self._read(topic, partitions):
                take(record)
        self._check_newer()
        counts = self._compare_inputs()
        dead = sum(self._count(tp, _DEAD) for tp in self._inputs[topics.labels])
        return AuditReport(tuple(counts), self._alerts, dead, self._redriven, self._findings, tuple(self._notes))

    # --- reading

    def _partitions_of(self, topic: str) -> dict[TopicPartition, tuple[int, int]]:
        ranges = {}
        for number in range(self._partitions[topic]):
            tp = TopicPartition(topic, number)
            ranges[tp] = _range(self._reader, tp)
            if ranges[tp][0] > 0:
                self._notes.append(
                    f"{topic}-{number} begins at offset {ranges[tp][0]}: older outputs are gone, "
                    f"and their events look lost"
                )
        return ranges

    def _read(self, topic: str, ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[Record]:
        """The records of these ranges. Partitions interleave; within one they are in order."""
        waiting = {tp: end for tp, (first, end) in ranges.items() if first < end}
        total = sum(end - first for first, end in ranges.values())
        if waiting:
            self._reader.assign({tp: ranges[tp][0] for tp in waiting})
        done, deadline = 0, time.monotonic() + _PATIENCE_S
        while waiting:
            polled = self._reader.poll(_POLL_RECORDS, _POLL_MS)
            for tp, records in polled.items():
                end = ranges[tp][1]
                yield from (record for record in records if record.offset < end)
                done += len(records)
            for tp in [tp for tp, end in waiting.items() if self._reader.position(tp) >= end]:
                del waiting[tp]
            if polled:
                deadline = time.monotonic() + _PATIENCE_S
                if self._progress is not None:
                    self._progress(topic, done, total)
            elif waiting and time.monotonic() > deadline:
                raise UnavailableError(f"no record of {topic} came for {_PATIENCE_S:.0f} s, but it has not ended")

    # --- outputs

    def _origin(self, record: Record) -> tuple[dict[str, Any], _Origins, int, TopicPartition] | None:
        """An output's content and its place in the bits; None if it has none, which is noted."""
        try:
            content = json.loads(record.value or b"")
            origin = content["origin"]
            tp = TopicPartition(str(origin["topic"]), int(origin["partition"]))
            offset = int(origin["offset"])
        except (ValueError, KeyError, TypeError):
            self._findings.add(Problem.UNREADABLE, record.topic, record.partition, record.offset)
            return None
        origins = self._origins.get(tp)
        if origins is None or offset < 0:
            self._findings.add(Problem.UNKNOWN_ORIGIN, record.topic, record.partition, record.offset)
            return None
        if offset >= origins.end:
            self._newer[tp] = max(self._newer.get(tp, 0), offset)
            return None
        if offset < origins.first:
            # Retention has dropped the event. Its score still tells which repeats are justified.
            if record.topic == self._topics.scores and tp.topic == self._topics.transactions:
                self._remember(tp.partition, content)
            return None
        return content, origins, offset, tp

    def _take_score(self, record: Record) -> None:
        found = self._origin(record)
        if found is None:
            return
        score, origins, offset, tp = found
        place = offset - origins.first
        bits = origins.bits[place]
        if tp.topic != self._topics.transactions:
            self._findings.add(Problem.UNKNOWN_ORIGIN, record.topic, record.partition, record.offset)
            return
        if bits & _SCORED:
            self._findings.add(Problem.SCORED_TWICE, *tp, offset)
            return
        bits |= _SCORED
        if score.get("decision") != "approve":
            bits |= _SUSPICIOUS
        if not _HISTORY_MISSING.isdisjoint(score.get("flags") or ()):
            bits |= _WITHOUT_HISTORY
        origins.bits[place] = bits
        origins.identity[place] = _identity(score)
        # Order holds within a partition of the scores: an account's scores must all lie in one, by rising offset.
        account = hash((score.get("account_id"), tp.partition))
        last = self._last_place.get(account)
        if last is not None and (last >> 16 >= offset or last & 0xFFFF != record.partition):
            self._findings.add(Problem.OUT_OF_ORDER, *tp, offset)
        self._last_place[account] = offset << 16 | record.partition
        if self._sink is not None:
            self._sink.add(score)

    def _take_alert(self, record: Record) -> None:
        found = self._origin(record)
        if found is None:
            return
        _, origins, offset, tp = found
        place = offset - origins.first
        bits = origins.bits[place]
        if bits & _ALERTED:
            self._findings.add(Problem.ALERT_TWICE, *tp, offset)
        elif not bits & _SUSPICIOUS and self._is_done(tp.partition, offset):
            self._findings.add(Problem.ALERT_UNFOUNDED, *tp, offset)
        else:
            self._alerts += 1
        origins.bits[place] = bits | _ALERTED

    def _take_dead_letter(self, record: Record) -> None:
        found = self._origin(record)
        if found is None:
            return
        _, origins, offset, tp = found
        place = offset - origins.first
        bits = origins.bits[place]
        if bits & _DEAD:
            self._findings.add(Problem.DEAD_TWICE, *tp, offset)
        if bits & _SCORED:
            self._findings.add(Problem.SCORED_AND_DEAD, *tp, offset)
        origins.bits[place] = bits | _DEAD

    def _check_newer(self) -> None:
        for tp, offset in self._newer.items():
            if offset >= self._reader.end_offset(tp):
                self._findings.add(Problem.UNKNOWN_ORIGIN, *tp, offset)

    def _count(self, tp: TopicPartition, bit: int) -> int:
        return sum(1 for bits in self._origins[tp].bits if bits & bit)

    # --- inputs

    def _compare_inputs(self) -> list[PartitionCounts]:
        partitions = self._inputs[self._topics.transactions]
        counts = [PartitionCounts(tp.partition) for tp in partitions]
        ranges = {tp: (self._origins[tp].first, self._origins[tp].end) for tp in partitions}
        for record in self._read(self._topics.transactions, ranges):
            of_partition = counts[record.partition]
            if any(name == _REDRIVEN for name, _ in record.headers):
                before = {name: getattr(of_partition, name) for name in self._redriven}
                self._compare(record, of_partition)
                for name, count in before.items():
                    self._redriven[name] += getattr(of_partition, name) - count
            else:
                self._compare(record, of_partition)
        for tp in partitions:
            origins = self._origins[tp]
            for place, bits in enumerate(origins.bits):
                if bits & (_SCORED | _DEAD | _ALERTED) and not bits & _PRESENT:
                    self._findings.add(Problem.UNKNOWN_ORIGIN, *tp, origins.first + place)
        return counts

    def _compare(self, record: Record, counts: PartitionCounts) -> None:
        topic, partition, offset = record.topic, record.partition, record.offset
        origins = self._origins[TopicPartition(topic, partition)]
        place = offset - origins.first
        bits = origins.bits[place] | _PRESENT
        origins.bits[place] = bits
        counts.events += 1
        if bits & _SUSPICIOUS and not bits & _ALERTED and self._is_done(partition, offset):
            self._findings.add(Problem.ALERT_MISSING, topic, partition, offset)
        if bits & _DEAD:
            counts.dead += not bits & _SCORED
            counts.scored += bool(bits & _SCORED)
            return
        event = _parsed(record.value)
        is_repeat = self._is_repeat(partition, event)
        if bits & _SCORED:
            counts.scored += 1
            if origins.identity[place] != _identity(event):
                self._findings.add(Problem.IDENTITY_CHANGED, topic, partition, offset)
            if is_repeat and not bits & _WITHOUT_HISTORY:
                self._findings.add(Problem.DUPLICATE_SCORED, topic, partition, offset)
            if not is_repeat:
                self._remember(partition, event)
        elif is_repeat:
            counts.duplicates += 1
        elif not self._is_done(partition, offset):
            counts.pending += 1
        else:
            counts.lost += 1
            self._findings.add(Problem.LOST, topic, partition, offset)

    def _is_done(self, partition: int, offset: int) -> bool:
        """Whether the group has committed it, so that all its outputs must be in sight."""
        return self._committed is None or offset < self._committed.get(partition, 0)

    def _is_repeat(self, partition: int, event: Mapping[str, Any]) -> bool:
        """Whether the event is one of the last distinct ones of its account."""
        ring = self._recent.get(hash((partition, event.get("account_id")))) if _is_event(event) else None
        return ring is not None and hash(event["event_id"]) in ring

    def _remember(self, partition: int, event: Mapping[str, Any]) -> None:
        if _is_event(event):
            ring = self._recent.setdefault(hash((partition, event["account_id"])), array("q"))
            ring.append(hash(event["event_id"]))
            del ring[:-REMEMBERED]


def _range(reader: Reader, partition: TopicPartition) -> tuple[int, int]:
    return reader.first_offset(partition), reader.end_offset(partition)


def _parsed(value: bytes | None) -> dict[str, Any]:
    """The event; empty if it is none, and then it can be no repeat of anything."""
    try:
        event = json.loads(value or b"")
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _is_event(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("account_id"), str) and isinstance(content.get("event_id"), str)


def _identity(content: Mapping[str, Any]) -> int:
    parts = (content.get(name) for name in ("event_id", "account_id", "timestamp"))
    return hash(tuple(part if isinstance(part, str) else None for part in parts))
