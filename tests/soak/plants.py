"""Defects that tests plant into a forked worker, by name: the checker must turn red for each. Never in the product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kafka import TopicPartition as VendorPartition
from kafka.structs import OffsetAndMetadata

from stream.engine.outputs import Judge, ModelExplainer
from stream.engine.turn import Message, Turn
from stream.engine.worker import Worker
from stream.errors import ScoringFailed
from stream.kafka.kafka_python import consumer
from stream.kafka.kafka_python.producer import KafkaPythonProducer
from stream.kafka.port import CommittedOffset, TopicPartition
from stream.scoring.scorer import TorchScorer
from stream.state import redis as redis_store
from stream.state.redis_scripts import Script


def _spoil_scores(spoil: Callable[[list[Message]], list[Message]]) -> None:
    """Applies `spoil` to the third batch of scores."""
    make, seen = Turn._messages, [0]

    def spoiled(self: Turn, topic: str, *arguments: Any) -> list[Message]:
        messages = make(self, topic, *arguments)
        if topic == self._settings.topics.scores and messages:
            seen[0] += 1
            return spoil(messages) if seen[0] == 3 else messages
        return messages

    Turn._messages = spoiled


def dropped_score() -> None:
    _spoil_scores(lambda messages: messages[1:])


def doubled_score() -> None:
    _spoil_scores(lambda messages: [*messages, messages[0]])


def changed_score() -> None:
    """One probability, by three millionths."""
    make, seen = Judge.score_records, [0]

    def changed(self: Judge, *arguments: Any) -> list[dict[str, Any]]:
        records = make(self, *arguments)
        seen[0] += 1
        if seen[0] == 3:
            records[0]["probability"] += 3e-6
        return records

    Judge.score_records = changed


def rows_before_commit() -> None:
    """Rows go to Redis while their events are not committed."""
    commit = Worker._commit

    def early(self: Worker, shares: list[Any], result: Any) -> None:
        keeper = self._keeper
        heads = {share.partition.number: share.partition.head for share in shares}
        for pool in keeper._state.pools():
            keeper._write([(pool.kind, pool.dirty_slots(list(heads)))], heads)
        commit(self, shares, result)

    Worker._commit = early


def offsets_outside_the_transaction() -> None:
    """They are committed by the consumer, at once, whatever becomes of the outputs."""
    commit, send = Worker._commit, KafkaPythonProducer.send_offsets
    current: list[Worker] = []

    def remembered(self: Worker, *arguments: Any) -> None:
        current[:] = [self]
        try:
            commit(self, *arguments)
        finally:
            current.clear()

    def at_once(self: KafkaPythonProducer, offsets: Mapping[TopicPartition, CommittedOffset], group: Any) -> None:
        own = {VendorPartition(*tp): OffsetAndMetadata(o.offset, o.metadata, -1) for tp, o in offsets.items()}
        for worker in current:
            worker._consumer._vendor.commit(own)
        send(self, offsets, group)

    Worker._commit, KafkaPythonProducer.send_offsets = remembered, at_once


def read_uncommitted() -> None:
    """The consumer sees what its upstream has aborted."""
    options = consumer._consumer_options

    def careless(settings: Any) -> dict[str, Any]:
        return {**options(settings), "isolation_level": "read_uncommitted"}

    consumer._consumer_options = careless


def any_row_replaces_any() -> None:
    """The comparison of offsets is gone from the Lua script."""
    _write_rows_with("return transactions + labels > 0", "return true")


def any_row_of_anybody_replaces_any() -> None:
    """So is the owner's epoch, which keeps a zombie out by itself."""
    any_row_replaces_any()
    _write_rows_with("return -1", "redis.call('GET', KEYS[1])")


def _write_rows_with(words: str, others: str) -> None:
    careless = redis_store.WRITE_ROWS.text.replace(words, others)
    assert careless != redis_store.WRITE_ROWS.text
    redis_store.WRITE_ROWS = script = Script(careless)
    redis_store.TEXT_BY_SHA[script.sha] = script.text


def failing_model() -> None:
    """Every call of the model raises. No defect of the engine: it must go on with rules alone."""

    def fails(self: TorchScorer, *arguments: Any) -> Any:
        raise ScoringFailed("the planted model fails")

    TorchScorer.score = fails


def failing_reasons() -> None:
    """Every attribution raises. No defect either: alerts go out without reasons."""

    def fails(self: ModelExplainer, *arguments: Any) -> Any:
        raise ScoringFailed("the planted attribution fails")

    ModelExplainer.reasons = fails


PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (
        dropped_score,
        doubled_score,
        changed_score,
        rows_before_commit,
        offsets_outside_the_transaction,
        read_uncommitted,
        any_row_replaces_any,
        any_row_of_anybody_replaces_any,
        failing_model,
        failing_reasons,
    )
}
