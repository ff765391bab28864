"""From a history to a training set, through the very feature code that serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry

from models.dataset import ReplayedBatch, TrainingSet, build
from stream.features.columns import MoneyConverter
from stream.features.spec import Domain
from stream.history.batch import HistoryBatch
from stream.metrics import Metrics
from stream.offline import HistoryReplay

SEGMENTS = ("channel", "country", "scenario")
"""Fields and attributes that reports are split by, where the history has them."""


def training_set(
    batches: Iterable[HistoryBatch],
    domain: Domain,
    money: MoneyConverter,
    *,
    until_ms: int,
    partitions: int = 1,
    segments: Sequence[str] = SEGMENTS,
) -> TrainingSet:
    """Replays the history before `until_ms`, each label from the moment it became known. Blocks for long.

    `partitions`: as many as the topic has. Step vectors do not depend on it; what entities show in the
    aggregates is of all partitions together. `segments`: text fields and attributes that a
    report is to be split by; the scenario of a simulated history is always among them. ConfigError when the
    history has no event before that.
    """
    replay = HistoryReplay(domain, money, Metrics(CollectorRegistry()), partitions=partitions)
    return build(domain, _replayed(replay, batches, until_ms, segments))


def _replayed(
    replay: HistoryReplay, batches: Iterable[HistoryBatch], until_ms: int, segments: Sequence[str]
) -> Iterator[ReplayedBatch]:
    for part in replay.run(_before(batches, until_ms)):
        history = part.history
        fields = {**history.attributes, **history.text}
        texts = {name: fields[name] for name in segments if name in fields}
        if history.scenario is not None:
            texts["scenario"] = history.scenario
        yield ReplayedBatch(part.batch, part.assembled, history.fraud, history.known_ms, texts)


def _before(batches: Iterable[HistoryBatch], until_ms: int) -> Iterator[HistoryBatch]:
    for batch in batches:
        count = int((batch.time_ms < until_ms).sum())
        yield batch.take(slice(0, count))
        if count < len(batch):
            return
