"""Behind the last event of a partition that has a score: at least so far the group has committed.

Scores and offsets are committed together. So where the group's committed offset, last set by a worker, is behind the
scores, its coordinator has lost or not yet read what it had acknowledged, and to score on from there would be twice.
"""

from __future__ import annotations

import json
import time

from stream.kafka.port import Reader, TopicPartition
from stream.state.store import Checkpoint

_SPAN, _WIDER = 1_000, 10
_POLL_MS, _PATIENCE_S = 200, 5.0


def behind_the_last_score(reader: Reader, scores: TopicPartition, transactions: TopicPartition) -> Checkpoint | None:
    """None: there is no score of `transactions`, or its log cannot be read to its end now. Blocks up to some seconds.

    Needs scores that lie in their event's partition.
    """
    first, end = reader.first_offset(scores), reader.end_offset(scores)
    span = _SPAN
    while first < end:
        start = max(first, end - span)
        found = _last_of(reader, scores, transactions, start, end)
        if found is not None or start == first:
            return found
        # Nothing but markers of transactions, or scores of other inputs.
        span *= _WIDER
    return None


def _last_of(
    reader: Reader, scores: TopicPartition, transactions: TopicPartition, start: int, end: int
) -> Checkpoint | None:
    """The last, and not the greatest: what was scored twice, after offsets were set back, counts as the last time."""
    found, deadline = None, time.monotonic() + _PATIENCE_S
    reader.assign({scores: start})
    while reader.position(scores) < end:
        if time.monotonic() > deadline:
            return None
        for record in reader.poll(_SPAN, _POLL_MS).get(scores, ()):
            content = json.loads(record.value or b"{}")
            origin = content.get("origin", {})
            if TopicPartition(origin.get("topic"), origin.get("partition")) == transactions:
                found = Checkpoint(int(origin["offset"]) + 1, int(content["labels_offset"]))
    return found
