"""From records to vectors to scores, without Kafka and without the store: what every turn does between
poll and produce. Serving, replay after a crash, offline scoring and training share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from stream.config import BatchSettings
from stream.engine.pressure import Shed
from stream.errors import ScoringFailed
from stream.events.decoder import Decoder
from stream.events.rejects import Reject
from stream.features.assemble import FeatureState
from stream.features.batch import Assembled, EventBatch, LabelBatch
from stream.features.columns import ColumnBuilder, MoneyConverter
from stream.features.labels import LabelOutcome
from stream.features.spec import Domain
from stream.kafka.port import Record
from stream.metrics import Metrics
from stream.scoring.lineup import CHAMPION, Lineup
from stream.scoring.scorer import Scorer, Scores

_Batch = TypeVar("_Batch", EventBatch, LabelBatch)


@dataclass(slots=True)
class Input(Generic[_Batch]):
    """Decoded records: the valid ones as columns, their records beside them, and the others with reasons."""

    batch: _Batch
    records: list[Record]
    rejects: list[tuple[Record, Reject]]

    def first(self, count: int, ends: Mapping[int, int]) -> Input[_Batch]:
        """The first `count` valid ones, and of the others those below the `ends` of their partitions."""
        rejects = [found for found in self.rejects if found[0].offset < ends.get(found[0].partition, 0)]
        return Input(self.batch.part(0, count), self.records[:count], rejects)


@dataclass(slots=True)
class Scored:
    """A batch after the model: `index` are the positions in the batch that are no duplicates, (A,)."""

    batch: EventBatch
    assembled: Assembled
    index: NDArray[np.int64]
    scorer: Scorer | None
    """None: rules only."""
    scores: Scores | None
    shadows: dict[str, Shadow] = field(default_factory=dict)
    """What the challengers say, by role; the same events as `scores`."""


class Shadow(NamedTuple):
    """A challenger and its scores of a batch."""

    scorer: Scorer
    scores: Scores


class Pipeline:
    """Holds the rows and the model of one worker. Not thread-safe."""

    def __init__(
        self,
        domain: Domain,
        money: MoneyConverter,
        limits: BatchSettings,
        state: FeatureState,
        lineup: Lineup,
        metrics: Metrics,
    ) -> None:
        self.domain, self.state, self.lineup = domain, state, lineup
        self._metrics = metrics
        self._events = Decoder(domain.event, limits, time_field=domain.time_field)
        self._labels = Decoder(domain.label, limits, time_field=domain.time_field)
        self._columns = ColumnBuilder(domain, money)
        self._log = structlog.get_logger("riskstream.pipeline")

    def decode_events(self, records: Sequence[Record]) -> Input[EventBatch]:
        """Validates transactions. Never raises for what a message holds."""
        decoded = self._events.decode(records)
        kept = [records[i] for i in decoded.indices]
        batch = self._columns.events(decoded.events, decoded.time_ms, *_origins(kept))
        return Input(batch, kept, [(records[reject.index], reject) for reject in decoded.rejects])

    def decode_labels(self, records: Sequence[Record]) -> Input[LabelBatch]:
        """Validates labels, likewise."""
        decoded = self._labels.decode(records)
        kept = [records[i] for i in decoded.indices]
        known_ms = decoded.times_ms[self.domain.label_time_field]
        batch = self._columns.labels(decoded.events, decoded.time_ms, known_ms, *_origins(kept))
        return Input(batch, kept, [(records[reject.index], reject) for reject in decoded.rejects])

    def show_model(self, role: str, scorer: Scorer | None) -> None:
        """Tells who has a role from now on, in the metrics. None: nobody."""
        spec_id = self.domain.spec_id
        if scorer is None:
            self._metrics.set_model(role, "", "", spec_id)
            return
        model = scorer.manifest
        rate, review_by_ms = model.thresholds.review_rate, model.review_by_ms
        self._metrics.set_model(role, model.name, model.version, spec_id, review_by_ms=review_by_ms, alert_rate=rate)

    def next_turn(self) -> None:
        """Rows that only earlier turns used may leave memory from now on."""
        self.state.next_turn()

    def fold_labels(self, batch: LabelBatch) -> LabelOutcome:
        """Rows must be in memory."""
        return self.state.fold_labels(batch)

    def fold_events(self, batch: EventBatch) -> Assembled:
        """Vectors, and the events folded. Rows must be in memory."""
        with self._metrics.stage("fold"):
            return self.state.assemble(batch)

    def score(self, batch: EventBatch, assembled: Assembled, *, shed: Shed = Shed.NOTHING) -> Scored:
        """One call of each model for the batch. A champion that fails gives way to the one before it, or to none;
        a challenger that fails leaves. Who is `shed` is not asked.
        """
        index = np.flatnonzero(~assembled.duplicate)
        scorer = self.lineup.current() if shed < Shed.MODEL else None
        scores = None
        with self._metrics.stage("score"):
            steps, lengths, aggregates = assembled.steps, assembled.lengths, assembled.aggregates
            if len(index) < len(batch):
                steps, lengths, aggregates = steps[index], lengths[index], aggregates[index]
            while scorer is not None and scores is None and len(index):
                try:
                    scores = scorer.score(steps, lengths, aggregates)
                except ScoringFailed as error:
                    self._log.error("the model failed and is replaced by the one before it", error=str(error))
                    self._metrics.model_failures.inc()
                    scorer = self.lineup.drop(scorer)
                    self.show_model(CHAMPION, scorer)
            shadows = self._shadows(steps, lengths, aggregates) if shed < Shed.CHALLENGERS and len(index) else {}
        return Scored(batch, assembled, index, scorer, scores, shadows)

    def _shadows(
        self, steps: NDArray[np.float32], lengths: NDArray[np.int64], aggregates: NDArray[np.float32]
    ) -> dict[str, Shadow]:
        shadows = {}
        for role, scorer in self.lineup.challengers.items():
            try:
                shadows[role] = Shadow(scorer, scorer.score(steps, lengths, aggregates))
            except ScoringFailed as error:
                self._log.error("a challenger failed and is dropped", role=role, error=str(error))
                self._metrics.model_failures.inc()
                self.lineup.drop_challenger(role)
                self.show_model(role, None)
        return shadows


def _origins(records: Sequence[Record]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(partition, offset) of N records: (N,) each."""
    partition = np.array([record.partition for record in records], dtype=np.int32)
    return partition, np.array([record.offset for record in records], dtype=np.int64)
