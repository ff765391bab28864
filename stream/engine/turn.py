"""One turn's work between poll and commit: decode, load, fold, score, decide, encode.

Rows are loaded before anything is folded, so a store that is away leaves the turn undone and repeatable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from stream.clock import Clock
from stream.config import Settings
from stream.engine.flush import ACCOUNT_EVENTS_PER_TURN, ACCOUNT_LABELS_PER_TURN, RowKeeper
from stream.engine.inputs import Share, keep_first, keep_one_champion, within_limit
from stream.engine.outputs import Judge, Judged, Situation
from stream.engine.pipeline import Input, Pipeline, Scored
from stream.engine.pressure import Ladder, Shed
from stream.errors import ConfigError, ScoringFailed, UnavailableError
from stream.events.records import DECISIONS, dead_letter, encode
from stream.events.rejects import Reject
from stream.features.batch import EventBatch, LabelBatch
from stream.features.labels import LabelOutcome
from stream.features.pool import ArenaFullError
from stream.kafka.headers import forwarded, source_ms
from stream.kafka.port import Headers, Record
from stream.metrics import Metrics
from stream.scoring.lineup import Change

_FEWEST = 256
"""What is decoded in vain of so few events costs less than a turn does."""


class Message(NamedTuple):
    """Something to produce. `partition` None: by key."""

    topic: str
    value: bytes
    key: bytes | None
    headers: Headers
    partition: int | None


@dataclass(slots=True)
class TurnResult:
    """What a turn wants published, and what to count once it has committed."""

    messages: list[Message] = field(default_factory=list)
    events: Input[EventBatch] | None = None
    labels: Input[LabelBatch] | None = None
    outcome: LabelOutcome | None = None
    judged: Judged | None = None
    shed: Shed = Shed.NOTHING

    @property
    def has_dead_letters(self) -> bool:
        return any(part is not None and part.rejects for part in (self.events, self.labels))


class Turn:
    """Does turns for one worker. Owned by the engine's thread."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        judge: Judge,
        keeper: RowKeeper,
        metrics: Metrics,
        clock: Clock,
        *,
        engine_version: str,
        same_partitions: Collection[str],
    ) -> None:
        """`same_partitions`: the output topics with as many partitions as the inputs.

        There an output goes to its event's partition, which spares hashing the key; elsewhere by key.
        """
        self._settings, self._pipeline, self._judge = settings, pipeline, judge
        self._keeper, self._metrics, self._clock = keeper, metrics, clock
        self._engine_version = engine_version
        self._log = structlog.get_logger("riskstream.turn")
        self._same_partitions = frozenset(same_partitions)
        self._ladder = Ladder(settings.scoring.deadline_ms, Shed[settings.scoring.shed.upper()])
        self._shedding = Shed.NOTHING
        self.most_events = settings.batch.max_events
        """How many events the next turn should take."""

    def change_models(self, changes: Sequence[Change]) -> None:
        """Models take their roles, or leave them. Between two turns only."""
        for change in changes:
            self._pipeline.lineup.apply(change)
            self._pipeline.show_model(change.role, change.scorer)
            self._metrics.model_changes.labels(change.role).inc()
            model = change.scorer.manifest.label if change.scorer is not None else None
            self._log.info("model changed", role=change.role, model=model, from_ms=change.from_ms)

    def run(self, shares: list[Share], flush_all: Callable[[], None]) -> TurnResult:
        """Does the turn, shortening the shares where an account would come too often.

        UnavailableError, StateLostError: nothing was folded. ConfigError when the arena is too small.
        """
        result = TurnResult()
        keep_one_champion(shares, self._pipeline.lineup)
        with self._metrics.stage("decode"):
            labels = self._pipeline.decode_labels([record for share in shares for record in share.labels])
            events = self._pipeline.decode_events([record for share in shares for record in share.records])
            labels, events = self._shorten(shares, labels, events)
        with self._metrics.stage("load"):
            self._load(shares, labels.batch, events.batch, flush_all)
        # Only now: a turn that waits for the store says nothing about the worker's speed.
        result.shed = self._shed(shares)
        result.labels, result.events = labels, events
        result.outcome = self._pipeline.fold_labels(labels.batch) if len(labels.batch) else None
        if len(events.batch):
            assembled = self._pipeline.fold_events(events.batch)
            result.judged = self._decide(
                shares, events, result, self._pipeline.score(events.batch, assembled, shed=result.shed)
            )
        self._add_dead_letters(result)
        return result

    def _shed(self, shares: Sequence[Share]) -> Shed:
        """What this turn leaves out: by the age of the oldest event that it takes."""
        oldest_ms = min((share.records[0].timestamp for share in shares if share.records), default=None)
        if oldest_ms is None:
            return Shed.NOTHING
        now_ms = self._clock.now_ms()
        shed = self._ladder.observe(now_ms, now_ms - oldest_ms)
        if shed != self._shedding:
            self._log.warning("under pressure" if shed else "pressure is over", leaves_out=shed.word)
            self._shedding = shed
            self._metrics.shed_step.set(shed)
        return shed

    # --- cutting

    def _shorten(
        self, shares: list[Share], labels: Input[LabelBatch], events: Input[EventBatch]
    ) -> tuple[Input[LabelBatch], Input[EventBatch]]:
        """Leaves for the next turn what would bring an account past the turn's limit: where one account is busy.

        What is left was decoded in vain, so the next turns take little more than this one could use.
        """
        few_labels = within_limit(labels.batch.accounts, ACCOUNT_LABELS_PER_TURN)
        few_events = within_limit(events.batch.accounts, ACCOUNT_EVENTS_PER_TURN)
        if few_labels < len(labels.batch):
            # The transactions behind the labels that wait must wait too.
            _cut_shares(shares, labels.records[few_labels], is_label=True)
            ends = {share.partition.number: share.end().labels for share in shares}
            return labels.first(few_labels, ends), events.first(0, {})
        if few_events < len(events.batch):
            _cut_shares(shares, events.records[few_events], is_label=False)
            ends = {share.partition.number: share.end().transactions for share in shares}
            events = events.first(few_events, ends)
            self.most_events = max(_FEWEST, few_events)
        self.most_events = min(self._settings.batch.max_events, self.most_events + self.most_events // 4)
        return labels, events

    # --- rows

    def _load(self, shares: list[Share], labels: LabelBatch, events: EventBatch, flush_all: Callable[[], None]) -> None:
        self._pipeline.next_turn()
        try:
            self._load_rows(shares, labels, events)
        except ArenaFullError:
            flush_all()
            try:
                self._load_rows(shares, labels, events)
            except ArenaFullError as error:
                raise ConfigError(
                    f"{error}: one turn needs more rows than fit. Raise state.arena_accounts and "
                    f"state.arena_entities to at least twice batch.max_events, or lower that"
                ) from None

    def _load_rows(self, shares: list[Share], labels: LabelBatch, events: EventBatch) -> None:
        degraded = {share.partition.number for share in shares if share.partition.degraded}
        heads = {share.partition.number: share.partition.head for share in shares}
        for batch in (labels, events):
            if len(batch):
                self._keeper.load(batch, heads, without=degraded)
        if len(events) and not degraded:
            now_ms = self._clock.now_ms()
            try:
                self._keeper.refresh_others(events, now_ms, self._settings.state.entity_refresh_ms)
            except UnavailableError:
                # The values at hand serve on; the records say how old they are.
                self._metrics.redis_errors.labels("unavailable").inc()

    # --- decisions and records

    def _decide(self, shares: list[Share], events: Input[EventBatch], result: TurnResult, scored: Scored) -> Judged:
        with self._metrics.stage("decide"):
            situation = self._situation(shares, events, result.shed)
            judged = self._judge.judge(scored, situation)
            records = self._judge.score_records(judged, situation)
            try:
                alerts = self._judge.alert_records(judged, records, explain=result.shed < Shed.REASONS)
            except ScoringFailed:
                alerts = self._judge.alert_records(judged, records, explain=False)
        topics = self._settings.topics
        with self._metrics.stage("encode"):
            places = [events.records[i] for i in scored.index.tolist()]
            result.messages += self._messages(topics.scores, places, encode(records))
            chosen = [places[i] for i in judged.suspicious.tolist()]
            result.messages += self._messages(topics.alerts, chosen, encode(alerts))
        return judged

    def _situation(self, shares: list[Share], events: Input[EventBatch], shed: Shed) -> Situation:
        now_ms = self._clock.now_ms()
        partition = events.batch.partition
        labels_offset = {share.partition.number: share.end().labels for share in shares}
        cold = [s.partition.number for s in shares if s.partition.cold_until_ms > now_ms]
        degraded = [s.partition.number for s in shares if s.partition.degraded]
        return Situation(
            origins=[
                {"topic": record.topic, "partition": record.partition, "offset": record.offset}
                for record in events.records
            ],
            labels_offset=[labels_offset[number] for number in partition.tolist()],
            cold=np.isin(partition, cold),
            degraded=np.isin(partition, degraded),
            now_ms=now_ms,
            shed=shed,
            has_challengers=bool(self._pipeline.lineup.challengers),
        )

    def _messages(self, topic: str, records: Sequence[Record], values: Sequence[bytes]) -> list[Message]:
        same = topic in self._same_partitions
        return [
            Message(topic, value, record.key, forwarded(record.headers), record.partition if same else None)
            for record, value in zip(records, values, strict=True)
        ]

    def _add_dead_letters(self, result: TurnResult) -> None:
        topic, now_ms = self._settings.topics.dead_letters, self._clock.now_ms()
        rejects = [reject for part in (result.labels, result.events) if part is not None for reject in part.rejects]
        letters = [
            dead_letter(record, reject, engine_version=self._engine_version, failed_ms=now_ms)
            for record, reject in rejects
        ]
        result.messages += self._messages(topic, [record for record, _ in rejects], encode(letters))

    # --- after the commit

    def count(self, shares: list[Share], result: TurnResult) -> None:
        """Counts a committed turn."""
        metrics = self._metrics
        events, labels = result.events, result.labels
        assert events is not None
        assert labels is not None
        read = Counter({share.partition.number: len(share.records) for share in shares})
        dead = Counter(record.partition for record, _ in events.rejects)
        duplicate = result.judged.scored.assembled.duplicate if result.judged is not None else np.zeros(0, np.bool_)
        duplicates = Counter(events.batch.partition[duplicate].tolist())
        scored = Counter(events.batch.partition[~duplicate].tolist())
        for number, count in read.items():
            metrics.count_turn(
                number, read=count, scored=scored[number], duplicates=duplicates[number], dead_letters=dead[number]
            )
        metrics.batch_events.observe(read.total())
        self._count_missing(events.batch)
        self._ladder.finished(self._clock.now_ms())
        for step in range(Shed.REASONS, result.shed + 1):
            metrics.shed_events.labels(Shed(step).word).inc(scored.total())
        _count_rejects(metrics, [*events.rejects, *labels.rejects])
        if result.outcome is not None:
            repeated = int(result.outcome.duplicate.sum())
            metrics.labels.labels("duplicate").inc(repeated)
            metrics.labels.labels("folded").inc(len(labels.batch) - repeated)
        metrics.labels.labels("dead_letter").inc(len(labels.rejects))
        if result.judged is not None:
            self._count_scores(result.judged, [events.records[i] for i in result.judged.scored.index.tolist()])

    def _count_missing(self, batch: EventBatch) -> None:
        """Optional fields that events came without."""
        if not len(batch):
            return
        for entity in self._pipeline.domain.entities:
            self._metrics.missing_fields.labels(entity.field).inc(batch.entities[entity.name].count(None))
        self._metrics.missing_fields.labels(self._pipeline.domain.latitude_field).inc(
            int(np.isnan(batch.latitude).sum())
        )

    def _count_shadows(self, judged: Judged) -> None:
        """What the challengers would have decided, beside what was decided."""
        for role, shadow in judged.shadows.items():
            for champion, challenger, count in _pairs(judged.decided.decision, shadow.decided.decision):
                self._metrics.shadow_decisions.labels(role, champion, challenger).inc(count)
            difference = np.abs(judged.probability - shadow.probability)
            self._metrics.shadow_difference.labels(role).inc(float(np.nansum(difference)))

    def _count_scores(self, judged: Judged, records: Sequence[Record]) -> None:
        metrics = self._metrics
        counts = np.bincount(judged.decided.decision, minlength=len(DECISIONS)).tolist()
        for place, decision in enumerate(DECISIONS):
            metrics.decisions.labels(decision).inc(counts[place])
            if place:
                metrics.alerts.labels(decision).inc(counts[place])
        self._count_shadows(judged)
        bands = np.bincount(judged.decided.band, minlength=len(self._judge.bands)).tolist()
        for band, count in zip(self._judge.bands, bands, strict=False):
            metrics.bands.labels(band).inc(count)
        score = judged.decided.score
        metrics.scores.observe(score[score >= 0])
        for names in judged.flag_names() if judged.flags.any() else ():
            for name in names:
                metrics.flags.labels(name).inc()
        shared = int(judged.scored.assembled.shared[judged.scored.index].sum())
        if shared:
            metrics.flags.labels("shared").inc(shared)
        metrics.latency.observe((self._clock.now_ms() - _source_times(records)) / 1000.0)


def _pairs(champion: NDArray[np.uint8], challenger: NDArray[np.uint8]) -> list[tuple[str, str, int]]:
    """How often each pair of decisions came: (champion's, challenger's, count)."""
    kinds = len(DECISIONS)
    counts = np.bincount(champion.astype(np.int64) * kinds + challenger, minlength=kinds**2).tolist()
    return [(DECISIONS[i // kinds], DECISIONS[i % kinds], count) for i, count in enumerate(counts) if count]


def _source_times(records: Sequence[Record]) -> NDArray[np.int64]:
    """When each source had its event ready: the header's word, else the record's timestamp. (A,), ms."""
    return np.array(
        [(source_ms(record.headers) if record.headers else None) or record.timestamp for record in records],
        dtype=np.int64,
    )


def _count_rejects(metrics: Metrics, rejects: Sequence[tuple[Record, Reject]]) -> None:
    for _, reject in rejects:
        metrics.dead_letters.labels(reject.stage, reject.code).inc()


def _cut_shares(shares: list[Share], first_left: Record, *, is_label: bool) -> None:
    """Shortens the shares so that `first_left` and all behind it wait for the next turn."""
    reached = False
    for share in shares:
        records = share.labels if is_label else share.records
        place = len(records)
        if not reached and share.partition.number == first_left.partition:
            place = next(i for i, record in enumerate(records) if record.offset == first_left.offset)
            reached = True
        elif reached:
            place = 0
        if is_label:
            # Nothing of the transactions: they wait behind labels that wait.
            keep_first(share, labels=place, records=0)
        else:
            # Labels of a share that is put off wholly are folded now all the same: they come first anyway.
            keep_first(share, labels=len(share.labels), records=place)
    shares[:] = [share for share in shares if share.labels or share.records]
