"""All dead letters, and what became of each: recomputed from the topics, nothing is kept elsewhere.

A redriven message says in a header where it first lay and how often it has been redriven. So the inputs tell
which letters have been redriven, and the dead-letter topic whether the message died again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from stream.deadletters.letter import Letter, Place, Selection, parse_letter
from stream.kafka.headers import redriven
from stream.kafka.port import Reader, TopicPartition
from stream.kafka.reading import read_range

# How far the clocks of a worker and of whoever redrives may differ.
_CLOCKS_MS = 3_600_000

Tell = Callable[[str, int], None]
"""(what is read, records so far)."""


class Status(StrEnum):
    """What became of the message in a dead letter."""

    OPEN = "open"
    """Not redriven yet."""
    PENDING = "pending"
    """Redriven, and no worker has got to it yet."""
    DONE = "done"
    """Redriven and accepted: scored, or recognised as a duplicate."""
    AGAIN = "again"
    """Redriven and dead again: its newer letter stands for it."""


@dataclass(slots=True)
class Overview:
    """The letters that were asked for, oldest first, and the status of each by origin."""

    letters: list[Letter]
    status: dict[Place, Status]
    unreadable: int = 0
    """Records of the dead-letter topic that are no dead letters."""
    by_status: Counter[Status] = field(default_factory=Counter)


def overview(
    reader: Reader,
    dead_letter_topic: str,
    partitions: Mapping[str, int],
    committed: Callable[[Sequence[TopicPartition]], Mapping[TopicPartition, int]],
    selection: Selection,
    *,
    with_values: bool = False,
    tell: Tell | None = None,
) -> Overview:
    """Reads the dead-letter topic, and the inputs from the oldest chosen letter on. Blocks.

    `partitions`: of each topic by name. `committed`: the group's offsets, asked for before outputs are read, so
    that a message that counts as done has all its outputs in sight.
    """
    inputs = [name for name in partitions if name != dead_letter_topic]
    places = [TopicPartition(name, number) for name in inputs for number in range(partitions[name])]
    done_below = committed(places)
    chosen: list[Letter] = []
    dead: set[Place] = set()
    unreadable = count = 0
    for record in read_range(reader, *_whole(reader, dead_letter_topic, partitions[dead_letter_topic])):
        letter = parse_letter(record)
        count += 1
        if tell is not None:
            tell("dead letters", count)
        if letter is None:
            unreadable += 1
            continue
        dead.add(letter.origin)
        if selection.fits(letter):
            chosen.append(letter if with_values else letter.without_value())
    chosen.sort(key=lambda letter: (letter.failed_ms, letter.origin))
    sent = _sent_again(reader, places, chosen, tell)
    found = Overview(chosen, {}, unreadable)
    for letter in chosen:
        again = [place for place, times in sent.get(letter.first, ()) if times == letter.times + 1]
        status = _status(again, dead, done_below)
        found.status[letter.origin] = status
        found.by_status[status] += 1
    return found


def _status(again: Iterable[Place], dead: set[Place], done_below: Mapping[TopicPartition, int]) -> Status:
    """Of a message that was sent again to these places."""
    states = {
        Status.AGAIN if place in dead else Status.DONE if place.offset < done_below.get(place.tp, 0) else Status.PENDING
        for place in again
    }
    return next((status for status in (Status.DONE, Status.PENDING, Status.AGAIN) if status in states), Status.OPEN)


def _sent_again(
    reader: Reader, places: Sequence[TopicPartition], letters: Sequence[Letter], tell: Tell | None
) -> dict[Place, list[tuple[Place, int]]]:
    """Of each message by where it first lay: where it lies again, and for the how-manieth time."""
    if not letters:
        return {}
    # A message is redriven after its letter was written.
    since_ms = min(letter.written_ms for letter in letters) - _CLOCKS_MS
    ends = {tp: reader.end_offset(tp) for tp in places}
    starts = {tp: reader.offset_for_time(tp, since_ms) for tp in places}
    wanted = {letter.first for letter in letters}
    sent: dict[Place, list[tuple[Place, int]]] = {}
    known = {tp: start for tp, start in starts.items() if start is not None}
    for count, record in enumerate(read_range(reader, known, ends)):
        if tell is not None:
            tell("inputs", count)
        before = redriven(record.headers) if record.headers else None
        if before is not None:
            first = Place(before.topic, before.partition, before.offset)
            if first in wanted:
                place = Place(record.topic, record.partition, record.offset)
                sent.setdefault(first, []).append((place, before.times))
    return sent


def _whole(reader: Reader, topic: str, partitions: int) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    places = [TopicPartition(topic, number) for number in range(partitions)]
    return {tp: reader.first_offset(tp) for tp in places}, {tp: reader.end_offset(tp) for tp in places}
