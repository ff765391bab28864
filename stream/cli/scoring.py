"""What `score` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream import interpreter
from stream.app import OfflineScorer, load_domain
from stream.cli.context import note, print_json
from stream.cli.history import History
from stream.cli.progress import Steps
from stream.cli.score_table import ScoreTable
from stream.clock import SystemClock
from stream.config import Settings
from stream.errors import ConfigError
from stream.features.spec import Domain
from stream.history.batch import HistoryBatch
from stream.offline import RecordedLabels, Verdicts, published_labels
from stream.scoring.loading import load_scorer


def score_file(
    settings: Settings,
    file: Path,
    mapping: Path,
    out: Path,
    *,
    partitions: int,
    label_delay_ms: int | None,
    verdicts: Verdicts,
    label_positions: Path | None,
    limit: int | None,
    json: bool,
) -> None:
    """Scores the file into the table. ConfigError, BundleRefused."""
    clock, domain = SystemClock(), load_domain(settings)
    history = History(domain, file, mapping, label_delay_ms=label_delay_ms, limit=limit)
    bundle, scorer = settings.scoring.bundle, None
    if bundle is not None:
        scorer = load_scorer(bundle, domain, settings.scoring)
    labels: Verdicts | RecordedLabels = verdicts
    if label_positions is not None:
        labels = recorded_labels(label_positions, history, domain, partitions, verdicts)
    offline = OfflineScorer(settings, domain, scorer, clock, partitions=partitions, labels=labels)
    interpreter.settle()
    started, alerts = clock.monotonic(), 0
    with ScoreTable(out) as table, Steps() as steps:
        for records in offline.records(history):
            for record in records:
                table.add(record)
                alerts += record["decision"] != "approve"
            steps.show("scored", table.rows, history.total)
    seconds = clock.monotonic() - started
    document = {
        "events": table.rows + offline.duplicates,
        "scored": table.rows,
        "duplicates": offline.duplicates,
        "alerts": alerts,
        "model": scorer.manifest.label if scorer is not None else None,
        "out": str(out),
        "seconds": round(seconds, 3),
        "events_per_s": round((table.rows + offline.duplicates) / seconds, 1) if seconds > 0 else 0.0,
    }
    for line in history.lines():
        note(line)
    if json:
        print_json(document)
    else:
        print(
            f"{out}: {table.rows:,} scores, {alerts:,} of them suspicious; {offline.duplicates:,} duplicates; "
            f"{seconds:,.1f} s ({document['events_per_s']:,.0f}/s)"
        )


def recorded_labels(
    positions: Path, history: History, domain: Domain, partitions: int, verdicts: Verdicts
) -> RecordedLabels:
    """Where the run on Kafka whose scores these are had learnt each label. ConfigError if they do not fit."""
    try:
        table = pq.read_table(positions, columns=["partition", "offset", "labels_offset"])
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"--label-positions {positions}: cannot be read ({type(error).__name__})") from None
    partition, offset, folded = (
        np.asarray(table[name].fill_null(0).to_numpy(), np.int64) for name in ("partition", "offset", "labels_offset")
    )
    if int(partition.max(initial=0)) >= partitions:
        raise ConfigError(f"--label-positions names partition {partition.max()}: give more --partitions")
    events = 0

    def counted() -> Iterator[HistoryBatch]:
        nonlocal events
        for batch in history:
            events += len(batch)
            yield batch

    published = published_labels(counted(), domain, partitions, verdicts)
    if int(offset.max(initial=0)) >= events:
        raise ConfigError(f"--label-positions names offset {offset.max()}: the file has {events} events, not that many")
    before = np.zeros((partitions, events), dtype=np.int64)
    before[partition, offset] = folded
    # What has no score (a duplicate) learns nothing new: it takes the value of the event before it.
    return RecordedLabels(published, list(np.maximum.accumulate(before, axis=1)))
