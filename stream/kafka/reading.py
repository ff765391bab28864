"""Reading a stretch of some partitions to its end, outside any group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from stream.errors import UnavailableError
from stream.kafka.port import Reader, Record, TopicPartition

_POLL_RECORDS, _POLL_MS, _PATIENCE_S = 2_000, 200, 60.0


def read_range(
    reader: Reader, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> Iterator[Record]:
    """The records of [start, end) of each partition. They interleave; within one partition they are in order.

    Blocks. UnavailableError when none comes for a minute and the end is not reached.
    """
    waiting = {tp for tp, start in starts.items() if start < ends[tp]}
    if waiting:
        reader.assign({tp: starts[tp] for tp in waiting})
    deadline = time.monotonic() + _PATIENCE_S
    while waiting:
        polled = reader.poll(_POLL_RECORDS, _POLL_MS)
        for tp, records in polled.items():
            yield from (record for record in records if record.offset < ends[tp])
        # Markers of transactions take offsets too: the position tells, not the last record.
        waiting = {tp for tp in waiting if reader.position(tp) < ends[tp]}
        if polled:
            deadline = time.monotonic() + _PATIENCE_S
        elif waiting and time.monotonic() > deadline:
            name = "-".join(map(str, min(waiting)))
            raise UnavailableError(f"no record of {name} came for {_PATIENCE_S:.0f} s, but it has not ended")
