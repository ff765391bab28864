"""Says whether what lies in the topics and in the store can be true. Shares no code with the engine.

It knows the wire formats only; what must come out it works out again from the input. Every complaint is a
line of text that begins with its kind (KINDS); an empty list means that all is well.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

REMEMBERED_EVENTS = 64
TOLERANCE = 1e-6
NOT_COMPARED = frozenset({"scored_at", "entity_view_age_ms"})
BY_NEIGHBOURS = frozenset({"probability", "score", "band", "decision", "components", "features", "rules"})
"""What other partitions' entity values may move."""
FORGETFUL = frozenset({"degraded", "cold"})
"""Flags that say: history was missing. Then a duplicate may pass."""

KINDS = ("lost", "twice", "different", "rows_different", "order", "identity", "ahead")
"""lost: an input without its outcome. twice: an outcome too many. different, rows_different: not as in the
undisturbed run. order: scores of an account, or known labels, out of order. identity: an outcome of the wrong
kind or content, alerts that do not agree with scores. ahead: a row that includes what is not committed."""

Origin = tuple[str, int, int]


class Record(Protocol):
    """What every Kafka client calls a consumed record."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


ReadAll = Callable[[str, int], list[Any]]
"""All committed records of one partition of a topic, in the order of their offsets."""


class Topics(NamedTuple):
    transactions: str = "transactions"
    labels: str = "labels"
    scores: str = "risk-scores"
    alerts: str = "alerts"
    dead_letters: str = "transactions.dlq"


DEFAULT_TOPICS = Topics()


@dataclass
class Outputs:
    """Decoded output records in the order of their partitions; by origin."""

    ordered: list[tuple[Origin, dict[str, Any]]] = field(default_factory=list)

    @property
    def by_origin(self) -> dict[Origin, list[dict[str, Any]]]:
        found: dict[Origin, list[dict[str, Any]]] = defaultdict(list)
        for origin, content in self.ordered:
            found[origin].append(content)
        return found


@dataclass
class Contents:
    """Everything in the five topics."""

    transactions: dict[int, list[Record]]
    labels: dict[int, list[Record]]
    scores: Outputs
    alerts: Outputs
    dead_letters: Outputs


def read(read_all: ReadAll, partitions: Iterable[int], topics: Topics = DEFAULT_TOPICS) -> Contents:
    """Reads all committed records of these partitions."""
    numbers = list(partitions)
    return Contents(
        transactions={p: read_all(topics.transactions, p) for p in numbers},
        labels={p: read_all(topics.labels, p) for p in numbers},
        scores=_outputs(read_all, topics.scores, numbers),
        alerts=_outputs(read_all, topics.alerts, numbers),
        dead_letters=_outputs(read_all, topics.dead_letters, numbers),
    )


def _outputs(read_all: ReadAll, topic: str, partitions: Iterable[int]) -> Outputs:
    outputs = Outputs()
    for partition in partitions:
        for record in read_all(topic, partition):
            content = json.loads(record.value or b"")
            origin = content["origin"]
            outputs.ordered.append(((origin["topic"], origin["partition"], origin["offset"]), content))
    return outputs


def complaints(
    contents: Contents, committed: Mapping[tuple[str, int], int], topics: Topics = DEFAULT_TOPICS
) -> list[str]:
    """One outcome for every input, each of the right kind, in order; and all of the input is done."""
    found = _outcomes(contents, topics)
    found += _inventions(contents, topics)
    found += _order(contents)
    found += _alerts(contents)
    found += _label_letters(contents, topics)
    for name, by_partition in ((topics.transactions, contents.transactions), (topics.labels, contents.labels)):
        for partition, records in by_partition.items():
            end = records[-1].offset + 1 if records else 0
            # Behind the last record nothing but markers can lie, which C may have passed.
            if records and committed.get((name, partition), 0) < end:
                found.append(f"lost: {name}-{partition}: committed {committed.get((name, partition))} of {end}")
    return found


def _outcomes(contents: Contents, topics: Topics) -> list[str]:
    found = []
    scores, letters = contents.scores.by_origin, contents.dead_letters.by_origin
    for partition, records in contents.transactions.items():
        remembered: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=REMEMBERED_EVENTS))
        for record in records:
            origin = (topics.transactions, partition, record.offset)
            mine, dead = scores.get(origin, []), letters.get(origin, [])
            if dict(record.headers).get("expected") == b"dead":
                found += _dead(origin, record, mine, dead)
                continue
            event = json.loads(record.value or b"")
            known = remembered[event["account_id"]]
            repeated = event["event_id"] in known
            if not repeated:
                known.append(event["event_id"])
            allowed = {0, 1} if repeated and _forgetful(mine) else {0} if repeated else {1}
            if len(mine) not in allowed or dead:
                kind = "lost" if not mine and not dead else "twice"
                what = "a duplicate" if repeated else "an event"
                codes = [letter["code"] for letter in dead]
                found.append(
                    f"{kind}: {origin}: {what} has {len(mine)} scores and {len(dead)} dead letters {codes}".rstrip(
                        " []"
                    )
                )
            for score in mine:
                wrong = [n for n in ("event_id", "account_id", "amount", "timestamp") if score[n] != event[n]]
                if wrong or score["passthrough"] != {"note": event["note"]}:
                    found.append(f"identity: {origin}: the score's {wrong or 'passthrough'} is another event's")
    return found


def _forgetful(scores: Iterable[Mapping[str, Any]]) -> bool:
    return all(FORGETFUL & set(score["flags"]) for score in scores)


def _dead(origin: Origin, record: Record, scores: list[Any], letters: list[dict[str, Any]]) -> list[str]:
    if len(letters) != 1 or scores:
        kind = "lost" if not letters and not scores else "twice"
        return [f"{kind}: {origin}: poison has {len(letters)} dead letters and {len(scores)} scores"]
    value = letters[0]["value"]
    if (None if value is None else base64.b64decode(value)) != record.value:
        return [f"identity: {origin}: the dead letter does not hold the message's bytes"]
    return []


def _label_letters(contents: Contents, topics: Topics) -> list[str]:
    letters, found = contents.dead_letters.by_origin, []
    for partition, records in contents.labels.items():
        for record in records:
            expected = int(dict(record.headers).get("expected") == b"dead")
            origin = (topics.labels, partition, record.offset)
            got = len(letters.get(origin, []))
            if got != expected:
                kind = "lost" if got < expected else "twice"
                found.append(f"{kind}: {origin}: a label has {got} dead letters, expected {expected}")
    return found


def _inventions(contents: Contents, topics: Topics) -> list[str]:
    """Outputs of inputs that do not exist: of an aborted record, or of no record at all."""
    inputs = {(topics.transactions, p, r.offset) for p, records in contents.transactions.items() for r in records}
    labels = {(topics.labels, p, r.offset) for p, records in contents.labels.items() for r in records}
    found = []
    for name, outputs, origins in (
        ("score", contents.scores, inputs),
        ("alert", contents.alerts, inputs),
        ("dead letter", contents.dead_letters, inputs | labels),
    ):
        found += [f"identity: {origin}: a {name} of nothing" for origin, _ in outputs.ordered if origin not in origins]
    return found


def _order(contents: Contents) -> list[str]:
    """Scores of an account come in the order of its events, and know ever more labels."""
    found = []
    last: dict[str, int] = {}
    labels: dict[int, tuple[int, int]] = {}
    for (_, partition, offset), score in contents.scores.ordered:
        account = score["account_id"]
        if offset <= last.get(account, -1):
            found.append(f"order: partition {partition}, offset {offset}: out of order")
        last[account] = offset
    for (_, partition, offset), score in sorted(contents.scores.ordered, key=lambda item: item[0]):
        before, known = labels.get(partition, (-1, 0))
        if score["labels_offset"] < known:
            found.append(f"order: partition {partition}: offset {offset} knows fewer labels than offset {before}")
        labels[partition] = (offset, score["labels_offset"])
    return found


def _alerts(contents: Contents) -> list[str]:
    suspicious = Counter(origin for origin, score in contents.scores.ordered if score["decision"] != "approve")
    alerts = Counter(origin for origin, _ in contents.alerts.ordered)
    found = [f"identity: {origin}: {alerts[origin]} alerts of {n} suspicious scores" for origin, n in suspicious.items()
             if alerts[origin] != n]  # fmt: skip
    return found + [
        f"identity: {origin}: an alert of an approved event" for origin in alerts if origin not in suspicious
    ]


def differences(one: Outputs, other: Outputs, *, without: frozenset[str] = frozenset()) -> list[str]:
    """What two runs over the same input say differently; records with a flag of `without` are left out."""
    mine, theirs = (
        {o: c for o, c in outputs.ordered if not without & set(c.get("flags", ()))} for outputs in (one, other)
    )
    common = mine.keys() & theirs.keys() if without else mine.keys() | theirs.keys()
    found = []
    for origin in sorted(common):
        if origin not in mine or origin not in theirs:
            found.append(f"different: {origin}: only one run has it")
        else:
            found += [f"different: {origin}: {line}" for line in _unlike(mine[origin], theirs[origin])]
    return found


def score_differences(scores: Outputs, undisturbed: Outputs) -> list[str]:
    """The same of two runs on real numbers.

    What other partitions' entity values moved is compared without the fields that hang on them. Where two
    probabilities differ within the tolerance, the decision may lie on either side of a threshold, and the
    rounded score may differ by one.
    """
    mine, theirs = dict(scores.ordered), dict(undisturbed.ordered)
    found = []
    for origin in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(origin), theirs.get(origin)
        if one is None or other is None:
            found.append(f"different: {origin}: only one run has it")
            continue
        unlike = _unlike(one, other, BY_NEIGHBOURS if one["entity_view_age_ms"] is not None else frozenset())
        if one["probability"] != other["probability"] and abs((one["score"] or 0) - (other["score"] or 0)) <= 1:
            unlike = [line for line in unlike if line.partition(":")[0] not in ("score", "band", "decision")]
        found += [f"different: {origin}: {line}" for line in unlike]
    return found


def comparable(scores: Outputs) -> int:
    """Scores of which every field is compared: no other partition's entity value took part."""
    return sum(content["entity_view_age_ms"] is None for _, content in scores.ordered)


def counts(complaints: Iterable[str]) -> dict[str, int]:
    """Complaints by kind. Several about one event count once."""
    by_kind: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for line in complaints:
        kind, _, rest = line.partition(": ")
        by_kind[kind].add(rest.partition(": ")[0])
    return {kind: len(subjects) for kind, subjects in by_kind.items()}


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any], without: frozenset[str] = frozenset()) -> list[str]:
    names = sorted((one.keys() | other.keys()) - NOT_COMPARED - without)
    return [f"{n}: {one.get(n)!r} and {other.get(n)!r}" for n in names if not _same(one.get(n), other.get(n))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        numbers = all(isinstance(value, float | int) for value in (one, other))
        return numbers and math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def rows_ahead(
    rows: Mapping[bytes, bytes], committed: Mapping[tuple[str, int], int], topics: Topics = DEFAULT_TOPICS
) -> list[str]:
    """Rows that include what is not committed. A row begins with its two offsets, its key with the partition."""
    found = []
    for key, row in rows.items():
        match = re.match(rb"\{[^:]*:[^:]*:(\d+)\}", key)
        assert match is not None
        partition = int(match.group(1))
        for topic, offset in zip((topics.transactions, topics.labels), struct.unpack_from("<qq", row), strict=True):
            if offset > committed.get((topic, partition), 0):
                found.append(f"ahead: partition {partition}: a row is at {offset} of {topic}, which is not committed")
    return found


def row_differences(one: Mapping[bytes, bytes], other: Mapping[bytes, bytes]) -> list[str]:
    """Rows, by the readable part of their keys, that are not the same bytes in both stores."""
    return [
        f"rows_different: row {key.decode()}: " + ("differs" if key in one and key in other else "is in one store only")
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def labels_known(scores: Outputs, partition: int) -> Sequence[tuple[int, int]]:
    """(offset of the event, labels offset that its score names) of one partition, in order."""
    return sorted((origin[2], content["labels_offset"]) for origin, content in scores.ordered if origin[1] == partition)
