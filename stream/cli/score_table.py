"""Score records as a Parquet file, one row per scored event, written in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 65_536
_SCHEMA = pa.schema(
    [
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("event_id", pa.string()),
        ("probability", pa.float64()),
        ("score", pa.int16()),
        ("band", pa.string()),
        ("decision", pa.string()),
        ("components", pa.map_(pa.string(), pa.float64())),
        ("flags", pa.list_(pa.string())),
        ("labels_offset", pa.int64()),
        ("entity_view_age_ms", pa.int64()),
        ("model", pa.string()),
    ]
)
_COPIED = tuple(name for name in _SCHEMA.names if name not in ("partition", "offset", "components"))


class ScoreTable:
    """Takes score records as parsed; a context manager. The file appears under its name when all is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._part = path.with_name(path.name + ".part")
        self._columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._part, _SCHEMA, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write()
        self._writer.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)

    def add(self, score: Mapping[str, Any]) -> None:
        """One row: origin, event id, and what the engine said."""
        columns, origin = self._columns, score["origin"]
        columns["partition"].append(origin["partition"])
        columns["offset"].append(origin["offset"])
        columns["components"].append(list((score.get("components") or {}).items()))
        for name in _COPIED:
            columns[name].append(score.get(name))
        self.rows += 1
        if len(columns["offset"]) >= _ROWS:
            self._write()

    def _write(self) -> None:
        if self._columns["offset"]:
            self._writer.write_batch(pa.RecordBatch.from_pydict(self._columns, _SCHEMA))
        for column in self._columns.values():
            column.clear()
