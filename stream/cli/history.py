"""History files as commands take them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stream.features.spec import Domain
from stream.history.batch import HistoryBatch, WireContract
from stream.history.mapping import load_mapping
from stream.history.reader import HistoryReader


class History:
    """A file, its mapping, and how much of it. Iterating reads it from the start, and can be repeated.

    ConfigError for a file or a mapping that does not fit.
    """

    def __init__(
        self,
        domain: Domain,
        file: Path,
        mapping: Path,
        *,
        label_delay_ms: int | None = None,
        limit: int | None = None,
        batch_rows: int = 16_384,
    ) -> None:
        self._contract = WireContract.of(domain.event, domain.label, domain.time_field)
        self._file, self._mapping, self._delay_ms = file, mapping, label_delay_ms
        self._limit, self._rows = limit, batch_rows
        self._reader = self._open()
        self._total: int | None = None

    def __iter__(self) -> Iterator[HistoryBatch]:
        self._reader = self._open()
        left = self._limit
        for batch in self._reader:
            yield batch if left is None else batch.take(slice(0, left))
            if left is not None:
                left -= min(left, len(batch))
                if left == 0:
                    return

    @property
    def total(self) -> int:
        """How many events there will be at most. Counts a CSV's lines the first time."""
        if self._total is None:
            self._total = self._reader.total_rows()
        return min(self._total, self._limit or self._total)

    def lines(self) -> list[str]:
        """What was read last, for a person."""
        return self._reader.summary.lines()

    def _open(self) -> HistoryReader:
        mapping = load_mapping(self._mapping, self._contract)
        return HistoryReader(self._file, mapping, batch_rows=self._rows, label_delay_ms=self._delay_ms)
