"""The loop of `riskstream quality`: read both topics, join, show the figures.

It belongs to no consumer group and commits nothing. Where it stands is in its checkpoint file, or nowhere: then a
start reads the horizon again, and comes to the same figures.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from stream.clock import Clock
from stream.config import QualitySettings
from stream.errors import UnavailableError
from stream.features.spec import window_ms
from stream.kafka.port import Reader, Record, TopicPartition
from stream.quality.book import CELL_MS, Book
from stream.quality.checkpoint import load, save
from stream.quality.figures import Figures, figures
from stream.quality.metrics import QualityMetrics
from stream.quality.reading import RecordReader, References

WINDOWS = ("1d", "7d", "30d")
_DAY_MS = 86_400_000
_POLL_RECORDS, _POLL_MS = 2_000, 200
_SHOW_S, _REFERENCES_S, _CHECKPOINT_S = 2.0, 60.0, 60.0


def new_book(settings: QualitySettings) -> Book:
    """An empty book that keeps what the longest window and the labels' delay need."""
    maturity_ms = int(settings.maturity_days * _DAY_MS)
    longest_ms = max(map(window_ms, WINDOWS))
    horizon_ms = maturity_ms + max(longest_ms, maturity_ms) + CELL_MS
    return Book(maturity_ms=maturity_ms, horizon_ms=horizon_ms, most_entries=settings.max_events)


class Observer:
    """Reads scores and labels of every partition. One thread; others may read `lag`, `last_turn` and `waiting`."""

    def __init__(
        self,
        settings: QualitySettings,
        reader: Reader,
        records: RecordReader,
        references: References,
        metrics: QualityMetrics,
        clock: Clock,
        *,
        scores: Sequence[TopicPartition],
        labels: Sequence[TopicPartition],
    ) -> None:
        self._settings, self._reader, self._records = settings, reader, records
        self._references, self._metrics, self._clock = references, metrics, clock
        self._scores, self._labels = tuple(scores), tuple(labels)
        self._log = structlog.get_logger("riskstream.quality")
        self.book = new_book(settings)
        self.last_turn = clock.monotonic()
        self.waiting = False
        """Whether Kafka does not answer."""
        self.lag: int | None = None
        """Records not yet read; None before it is known."""
        self.caught_up = False
        """Whether it has been at the end of the topics: before that, figures are not shown."""
        self._positions: dict[TopicPartition, int] = {}
        self._goal: dict[TopicPartition, int] | None = None
        """What the scores must be read up to before the labels are; None: labels are read too."""
        self._shown = self._asked = self._saved = float("-inf")

    def start(self) -> None:
        """Stands at the checkpoint, or at the beginning of the horizon. Blocks. UnavailableError."""
        positions = self._from_checkpoint()
        if positions is None:
            self.book = new_book(self._settings)
            positions = {tp: self._reader.first_offset(tp) for tp in self._labels}
            from_ms = self._clock.now_ms() - self.book.horizon_ms
            for tp in self._scores:
                found = self._reader.offset_for_time(tp, from_ms)
                positions[tp] = self._reader.end_offset(tp) if found is None else found
        self._positions = positions
        # Scores alone first: then every label finds its score, and none has to wait for a day that is read later.
        self._reader.assign({tp: positions[tp] for tp in self._scores})
        self._goal = {tp: self._reader.end_offset(tp) for tp in self._scores}
        self._log.info("reading", records=self._count_lag())

    def run(self, stop: threading.Event) -> None:
        """Turns until stopped, then saves the checkpoint. Blocks."""
        while not stop.is_set():
            try:
                self.run_once()
                self.waiting = False
            except UnavailableError as error:
                if not self.waiting:
                    self._log.warning("Kafka does not answer", error=str(error))
                self.waiting = True
                stop.wait(1.0)
        self.save()

    def run_to_end(self) -> Figures:
        """Reads all that is there now; the figures. Blocks. UnavailableError."""
        while not self.caught_up:
            self.run_once()
        return figures(self.book, WINDOWS)

    def run_once(self) -> None:
        """One poll, joined; figures and checkpoint when it is time."""
        self.last_turn = self._clock.monotonic()
        if self.last_turn - self._asked >= _REFERENCES_S:
            self._asked = self.last_turn
            self.book.use(self._references.read())
        polled = self._reader.poll(_POLL_RECORDS, _POLL_MS)
        self._take(polled)
        self._follow_labels()
        may_be_whole = not (polled or self.caught_up)
        if may_be_whole or self.last_turn - self._shown >= _SHOW_S:
            self._shown = self.last_turn
            self.caught_up = self._count_lag() == 0 or self.caught_up
            self.show()
        if self.last_turn - self._saved >= _CHECKPOINT_S:
            # The first one a minute after the start: nothing is gained by saving what was just loaded.
            if self._saved > float("-inf"):
                self.save()
            self._saved = self.last_turn

    def show(self) -> None:
        """Exposes how it stands, and the figures once they are whole: without the labels they would be false."""
        turned_s = self._clock.now_ms() / 1000
        found = figures(self.book, WINDOWS) if self.caught_up else None
        self._metrics.show(found, self.book, lag=self.lag or 0, turned_s=turned_s)

    def _follow_labels(self) -> None:
        """Begins with the labels when the scores that were there at the start are read."""
        if self._goal is not None and all(self._reader.position(tp) >= end for tp, end in self._goal.items()):
            self._goal = None
            scores = {tp: self._reader.position(tp) for tp in self._scores}
            self._reader.assign({**scores, **{tp: self._positions[tp] for tp in self._labels}})

    def _take(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> None:
        # Labels behind scores: the scores that they speak of are then more likely there.
        scores = [record for tp in self._scores for record in polled.get(tp, ())]
        labels = [record for tp in self._labels for record in polled.get(tp, ())]
        if scores:
            columns, shadows, unreadable = self._records.scores(scores, self._clock.now_ms() + _DAY_MS)
            self.book.outcomes["scores", "unreadable"] += unreadable
            self.book.add_scores(columns, shadows)
        if labels:
            verdicts, unreadable = self._records.labels(labels)
            self.book.outcomes["labels", "unreadable"] += unreadable
            self.book.add_labels(verdicts)

    def _places(self) -> dict[TopicPartition, int]:
        """What is read next, of both topics."""
        labels = self._positions if self._goal is not None else {tp: self._reader.position(tp) for tp in self._labels}
        return {tp: self._reader.position(tp) for tp in self._scores} | {tp: labels[tp] for tp in self._labels}

    def _count_lag(self) -> int:
        places = self._places()
        self.lag = sum(max(0, self._reader.end_offset(tp) - place) for tp, place in places.items())
        return self.lag

    def _from_checkpoint(self) -> dict[TopicPartition, int] | None:
        path = self._settings.checkpoint
        if path is None or not path.exists():
            return None
        try:
            positions = load(path, self.book)
        except ValueError as error:
            self._log.warning("the checkpoint is not used", path=str(path), error=str(error))
            return None
        same = set(positions) == {*self._scores, *self._labels} and all(
            self._reader.first_offset(tp) <= offset <= self._reader.end_offset(tp) for tp, offset in positions.items()
        )
        if not same:
            self._log.warning("the checkpoint is not used", path=str(path), error="the topics are not those it knew")
            return None
        return positions

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one. Blocks."""
        path: Path | None = self._settings.checkpoint
        if path is not None:
            try:
                save(path, self.book, self._places())
            except OSError as error:
                self._log.warning("the checkpoint cannot be written", path=str(path), error=str(error))
