"""Score records as a Parquet file, one row per scored event, written in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 65_536
_FIELDS = (
    ("partition", pa.int32()),
    ("offset", pa.int64()),
    ("event_id", pa.string()),
    ("timestamp", pa.string()),
    ("probability", pa.float64()),
    ("score", pa.int16()),
    ("band", pa.string()),
    ("decision", pa.string()),
    ("flags", pa.list_(pa.string())),
    ("labels_offset", pa.int64()),
    ("entity_view_age_ms", pa.int64()),
    ("model", pa.string()),
)
_COPIED = tuple(name for name, _ in _FIELDS if name not in ("partition", "offset"))


class ScoreTable:
    """Takes score records as parsed; a context manager. The file appears under its name when all is written.

    Columns: origin, identity, what the engine said, and `component_NAME` for each part of the model that the
    first records name. No account: the event id joins the table to what has one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._part = path.with_name(path.name + ".part")
        self._columns: dict[str, list[Any]] = {name: [] for name, _ in _FIELDS}
        self._parts: list[Mapping[str, float | None]] = []
        self._names: list[str] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write()
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)

    def add(self, score: Mapping[str, Any]) -> None:
        """One row."""
        columns, origin = self._columns, score["origin"]
        columns["partition"].append(origin["partition"])
        columns["offset"].append(origin["offset"])
        for name in _COPIED:
            columns[name].append(score.get(name))
        self._parts.append(score.get("components") or {})
        self.rows += 1
        if len(self._parts) >= _ROWS:
            self._write()

    def _write(self) -> None:
        if self._writer is None:
            self._names = sorted({name for parts in self._parts for name in parts})
            fields = [*_FIELDS, *((f"component_{name}", pa.float64()) for name in self._names)]
            self._writer = pq.ParquetWriter(self._part, pa.schema(fields), compression="zstd")
        columns = dict(self._columns)
        columns |= {f"component_{name}": [parts.get(name) for parts in self._parts] for name in self._names}
        if self._parts:
            self._writer.write_batch(pa.RecordBatch.from_pydict(columns, self._writer.schema))
        self._parts.clear()
        for column in self._columns.values():
            column.clear()
