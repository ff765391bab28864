"""Where the scores of a partition end, however much else lies behind them."""

from __future__ import annotations

import json

import pytest

from stream.engine import last_score
from stream.engine.last_score import behind_the_last_score
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import TopicPartition

SCORES, TRANSACTIONS = TopicPartition("scores", 0), TopicPartition("transactions", 0)


def score(offset: int, labels: int, topic: str = "transactions") -> bytes:
    origin = {"topic": topic, "partition": 0, "offset": offset}
    return json.dumps({"origin": origin, "labels_offset": labels}).encode()


def broker(*values: bytes) -> MemoryBroker:
    made = MemoryBroker()
    made.create_topic("scores", partitions=1)
    made.create_topic("transactions", partitions=1)
    for value in values:
        made.append("scores", value, partition=0)
    return made


def found(made: MemoryBroker) -> tuple[int, int] | None:
    return behind_the_last_score(MemoryKafka(made).reader(), SCORES, TRANSACTIONS)


def test_without_scores_there_is_nothing_to_stand_behind() -> None:
    assert found(broker()) is None
    assert found(broker(score(7, 1, "other"))) is None


def test_the_last_one_counts_and_not_the_greatest() -> None:
    assert found(broker(score(7, 1), score(9, 2))) == (10, 2)
    assert found(broker(score(9, 2), score(3, 0), score(4, 0))) == (5, 0)


@pytest.mark.parametrize("behind", [1, 5, 300])
def test_it_is_found_behind_any_number_of_markers_and_other_scores(
    behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_score, "_SPAN", 2)
    made = broker(score(7, 1), score(8, 3))
    client = MemoryKafka(made)
    producer = client.producer("p")
    producer.init_transactions()
    for _ in range(behind):
        producer.begin()
        producer.produce("scores", b"aborted", partition=0)
        producer.abort()
        made.append("scores", score(99, 9, "other"), partition=0)
    assert found(made) == (9, 3)


def test_what_is_not_committed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_score, "_PATIENCE_S", 0.05)
    made = broker(score(7, 1))
    producer = MemoryKafka(made).producer("p")
    producer.init_transactions()
    producer.begin()
    producer.produce("scores", score(8, 1), partition=0)
    assert found(made) in (None, (8, 1))
