"""The log of one partition: records, control markers, and how far readers of committed records may look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stream.errors import LogTruncatedError
from stream.kafka.port import TopicPartition


class MemoryRecord(NamedTuple):
    """A record as consumers get it; see `stream.kafka.port.Record`."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


# Half the price of calling the class, for which every record pays.
_new_record = MemoryRecord._make


class PartitionLog:
    """A list of records in which the slot of a control marker or of an aborted record is None.

    Only what lies below the last stable offset is ever read, so an abort can empty its slots in place.
    """

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.first_offset = 0
        self._slots: list[MemoryRecord | None] = []
        # Transactional id -> offsets of its records in the open transaction.
        self.open: dict[str, list[int]] = {}

    @property
    def next_offset(self) -> int:
        """The offset that the next record will get; also the high watermark."""
        return self.first_offset + len(self._slots)

    @property
    def last_stable_offset(self) -> int:
        """The first offset of the oldest open transaction, or the end."""
        if not self.open:
            return self.next_offset
        return min(offsets[0] for offsets in self.open.values())

    def append(
        self, timestamp: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> int:
        """Returns the record's offset. For a transaction, the caller notes it in `open`."""
        offset = self.first_offset + len(self._slots)
        topic, partition = self.partition
        self._slots.append(_new_record((topic, partition, offset, timestamp, key, value, headers)))
        return offset

    def end_transaction(self, transactional_id: str, *, committed: bool) -> None:
        """Makes the records of the open transaction visible, or never; its marker takes one offset."""
        offsets = self.open.pop(transactional_id, None)
        if offsets is None:
            return
        if not committed:
            for offset in offsets:
                self._slots[offset - self.first_offset] = None
        self._slots.append(None)

    def read(self, position: int, max_records: int) -> tuple[list[MemoryRecord], int]:
        """Committed records from a position on, and the position behind them (past control markers).

        LogTruncatedError if the position lies outside the log.
        """
        self.check(position)
        records: list[MemoryRecord] = []
        stable = self.last_stable_offset
        while position < stable and len(records) < max_records:
            start = position - self.first_offset
            stop = min(stable - self.first_offset, start + max_records - len(records))
            records.extend(filter(None, self._slots[start:stop]))
            position = stop + self.first_offset
        return records, position

    def check(self, position: int) -> None:
        """LogTruncatedError if no record can ever be read from this position."""
        if not self.first_offset <= position <= self.next_offset:
            topic, partition = self.partition
            raise LogTruncatedError(
                f"offset {position} of {topic}-{partition} is outside the log, "
                f"which holds [{self.first_offset}, {self.next_offset})"
            )

    def offset_for_time(self, timestamp_ms: int) -> int | None:
        for record in self._slots[: self.last_stable_offset - self.first_offset]:
            if record is not None and record.timestamp >= timestamp_ms:
                return record.offset
        return None

    def delete_before(self, offset: int) -> None:
        """What retention does: drops the records below the offset, which must be stable."""
        offset = min(offset, self.last_stable_offset)
        if offset > self.first_offset:
            del self._slots[: offset - self.first_offset]
            self.first_offset = offset
