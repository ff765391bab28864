"""A history batch as a Parquet file, with the mapping that reads it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stream.history.batch import NEVER_MS, UNKNOWN, HistoryBatch

_SCENARIO = "scenario"
"""Which simulated fraud an event is: an attribute that no feature uses, for reports by scenario."""


def write_history(batch: HistoryBatch, path: Path) -> Path:
    """Writes the events and labels, and beside the file its mapping (.yaml), whose path is returned."""
    contract = batch.contract
    columns: dict[str, pa.Array] = {contract.time_field: pa.array(batch.time_ms, pa.timestamp("ms", "UTC"))}
    columns |= {name: pa.array(values.tolist(), pa.string()) for name, values in batch.text.items()}
    columns |= {name: pa.array(values, pa.float64(), mask=np.isnan(values)) for name, values in batch.numbers.items()}
    columns["fraud"] = pa.array(batch.fraud, pa.int8(), mask=batch.fraud == UNKNOWN)
    columns["label_known"] = pa.array(batch.known_ms, pa.timestamp("ms", "UTC"), mask=batch.known_ms == NEVER_MS)
    if batch.scenario is not None:
        columns[_SCENARIO] = pa.array(batch.scenario.tolist(), pa.string())
    pq.write_table(pa.table(columns), path, compression="zstd")
    mapping = path.with_suffix(".yaml")
    document = {
        "fields": {name: {"column": name} for name in columns if name not in ("fraud", "label_known", _SCENARIO)},
        "attributes": [_SCENARIO] if batch.scenario is not None else [],
        "label": {
            "column": "fraud",
            "positive": ["1"],
            "negative": ["0"],
            "known": {"column": "label_known"},
            "delay": "7d",
            "source": batch.label_source,
        },
    }
    mapping.write_text("# Which column is what. All scalars are read as text.\n" + yaml.safe_dump(document))
    return mapping
