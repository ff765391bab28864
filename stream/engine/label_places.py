"""Where labels were folded below the last flush, of which no commit note tells: the score records say it.

Each score names the labels offset that its event was scored at, and scores are as exactly once as the rows.
So a rebuild, and a replay from data of Redis that is older than the last flush, can fold labels where the
first time did, instead of where Kafka's timestamps would put them (a label may have come a little later).
"""

from __future__ import annotations

import json
from dataclasses import replace

from stream.engine.partition import CommitNote
from stream.engine.restore import Log, Plan
from stream.kafka.port import Reader, Record, TopicPartition
from stream.state.store import Checkpoint

_POLL_MS = 200
_CLOCKS_MS = 60_000
"""How far the clocks of the input's producer and of a worker may be apart."""


class LabelPlaces:
    """Reads the scores of a stretch of a partition, poll by poll. Needs scores that lie in their event's partition."""

    def __init__(
        self, log: Log, plan: Plan, note: CommitNote, scores: TopicPartition, reader: Reader, max_records: int
    ) -> None:
        """`note` is the note of the last commit, `reader` is this object's own; `close` closes it."""
        self._log, self._plan, self._note = log, plan, note
        self._scores, self._reader, self._max = scores, reader, max_records
        self._found: dict[int, int] = {}
        self._end: int | None = None
        self._reader.assign({log.transactions: plan.start.transactions})

    def step(self) -> bool:
        """Reads on; True when all is read. Blocks up to a fifth of a second. UnavailableError: again."""
        if self._end is None:
            return self._find_first()
        if self._reader.position(self._scores) >= self._end:
            return True
        for record in self._reader.poll(self._max, _POLL_MS).get(self._scores, ()):
            self._note_score(record)
        return False

    def plan(self) -> Plan:
        """The plan with the places in its note. Labels before the first score that was found go by timestamps."""
        events = sorted(self._found)
        if not events:
            return self._plan
        places = [(event, self._found[event]) for event in events]
        base = self._note.base
        places += [(base.transactions, base.labels), *self._note.pairs]
        pairs: list[tuple[int, int]] = []
        known = places[0][1]
        for event, labels in sorted(places):
            if labels > known:
                pairs.append((event, labels))
                known = labels
        note = replace(self._plan.note, base=Checkpoint(*places[0]), pairs=tuple(pairs))
        return replace(self._plan, note=note)

    def close(self) -> None:
        self._reader.close()

    def _find_first(self) -> bool:
        """The scores of the stretch were published after its first transaction was."""
        records = self._reader.poll(1, _POLL_MS).get(self._log.transactions, ())
        if not records:
            return self._reader.position(self._log.transactions) >= self._plan.end.transactions
        first = self._reader.offset_for_time(self._scores, records[0].timestamp - _CLOCKS_MS)
        if first is None:
            return True
        self._end = self._reader.end_offset(self._scores)
        self._reader.assign({self._scores: first})
        return False

    def _note_score(self, record: Record) -> None:
        content = json.loads(record.value or b"{}")
        origin = content["origin"]
        own = TopicPartition(origin["topic"], origin["partition"]) == self._log.transactions
        # From the note's base on, its pairs tell. What was scored twice, after offsets were set back, counts as the
        # last time.
        if own and self._plan.start.transactions <= origin["offset"] < self._note.base.transactions:
            self._found[origin["offset"]] = int(content["labels_offset"])
