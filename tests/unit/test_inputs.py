"""Which of the waiting records a turn takes: labels behind the transactions before them, a fair share for everybody."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence

import pytest

from stream.engine import inputs
from stream.engine.inputs import Share, keep_first, put_back, take, within_limit
from stream.engine.partition import Partition, Phase
from stream.kafka.memory import MemoryRecord
from stream.state.store import Checkpoint

NOBODY: frozenset[int] = frozenset()


def record(topic: str, partition: int, offset: int, timestamp: int) -> MemoryRecord:
    return MemoryRecord(topic, partition, offset, timestamp, None, b"", ())


def waiting(
    number: int, transactions: Sequence[int], labels: Sequence[int] = (), done: Checkpoint | None = None
) -> Partition:
    """A running partition with records of these timestamps in its queues."""
    partition = Partition(number, Phase.RUNNING, done or Checkpoint(0, 0))
    partition.waiting_records.extend(record("transactions", number, i, at) for i, at in enumerate(transactions))
    partition.waiting_labels.extend(record("labels", number, i, at) for i, at in enumerate(labels))
    return partition


def offsets(records: Sequence[object]) -> list[int]:
    return [r.offset for r in records]  # type: ignore[attr-defined]


def taken(shares: Sequence[Share]) -> list[tuple[int, list[int], list[int]]]:
    return [(share.partition.number, offsets(share.labels), offsets(share.records)) for share in shares]


def test_nothing_waits_and_nothing_is_taken() -> None:
    assert take([waiting(0, []), waiting(1, [])], frozenset({0, 1}), 10) == []


def test_a_label_waits_for_the_transactions_before_it() -> None:
    """It was published after the third; the first is what stands in front."""
    partition = waiting(0, [10, 20, 30], [25])
    assert taken(take([partition], NOBODY, 10)) == [(0, [], [0, 1, 2])]
    assert offsets(partition.waiting_labels) == [0]


@pytest.mark.parametrize(("label", "due"), [(9, True), (10, True), (11, False)])
def test_a_label_is_due_once_no_waiting_transaction_is_older(label: int, due: bool) -> None:
    partition = waiting(0, [10, 20], [label])
    assert taken(take([partition], NOBODY, 10)) == [(0, [0] if due else [], [0, 1])]


def test_labels_keep_their_order() -> None:
    """One that is not due holds up those behind it, though a clock was wrong and they look older."""
    assert taken(take([waiting(0, [10], [5, 50, 5])], NOBODY, 10)) == [(0, [0], [0])]


def test_without_transactions_labels_are_due_when_all_published_ones_have_been_polled() -> None:
    assert taken(take([waiting(0, [], [5, 6])], frozenset({0}), 10)) == [(0, [0, 1], [])]
    assert take([waiting(0, [], [5, 6])], frozenset({1}), 10) == []


def test_no_more_than_asked_for() -> None:
    partitions = [waiting(0, [1] * 7), waiting(1, [1] * 7), waiting(2, [1] * 7)]
    assert taken(take(partitions, NOBODY, 10)) == [(0, [], [0, 1, 2, 3]), (1, [], [0, 1, 2]), (2, [], [0, 1, 2])]
    assert [len(partition.waiting_records) for partition in partitions] == [3, 4, 4]


def test_a_long_queue_takes_what_the_others_leave() -> None:
    partitions = [waiting(0, [1] * 40), waiting(1, [1] * 2), waiting(2, [1] * 4)]
    assert [len(share.records) for share in take(partitions, NOBODY, 12)] == [6, 2, 4]
    assert [len(share.records) for share in take(partitions, NOBODY, 12)] == [12]


def test_with_more_partitions_than_places_the_first_get_one_each() -> None:
    partitions = [waiting(number, [1] * 3) for number in range(4)]
    assert taken(take(partitions, NOBODY, 2)) == [(0, [], [0]), (1, [], [0])]


def test_labels_are_bounded_over_all_partitions_together() -> None:
    """A turn must not need more rows than fit: labels count once, whoever's they are."""
    partitions = [waiting(number, [], [1] * 6) for number in range(3)]
    shares = take(partitions, frozenset({0, 1, 2}), 10)
    assert taken(shares) == [(0, [0, 1, 2, 3, 4, 5], []), (1, [0, 1, 2, 3], [])]


def test_transactions_wait_behind_labels_that_are_due_and_do_not_fit() -> None:
    partition = waiting(0, [10, 20], [1] * 5)
    assert taken(take([partition], NOBODY, 3)) == [(0, [0, 1, 2], [])]
    assert taken(take([partition], NOBODY, 3)) == [(0, [3, 4], [0, 1])]


def test_who_stands_last_is_not_starved_of_labels() -> None:
    """The first takes the only place of the turn; the labels of the second are due all the same."""
    assert taken(take([waiting(0, [10] * 4), waiting(1, [10], [5])], NOBODY, 1)) == [(0, [], [0]), (1, [0], [])]


def test_a_share_knows_where_it_ends() -> None:
    done = Checkpoint(7, 3)
    partition = Partition(0, Phase.RUNNING, done)
    some, labels = [record("transactions", 0, 9, 0), record("transactions", 0, 12, 0)], [record("labels", 0, 5, 0)]
    assert Share(partition).end() == done
    assert Share(partition, labels, []).end() == (7, 6)
    assert Share(partition, [], some).end() == (13, 3)
    assert Share(partition, labels, some).end() == (13, 6)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_put_back_stands_where_it_stood(seed: int) -> None:
    """After any shortening, too."""
    draw = random.Random(seed)
    partitions = [
        waiting(n, sorted(draw.randrange(50) for _ in range(draw.randrange(9))), [draw.randrange(50) for _ in range(4)])
        for n in range(3)
    ]
    before = [(list(p.waiting_labels), list(p.waiting_records)) for p in partitions]
    shares = take(partitions, NOBODY, draw.randrange(1, 20))
    for share in shares:
        labels = draw.randint(0, len(share.labels))
        keep_first(share, labels=labels, records=draw.randint(0, len(share.records)))
        assert len(share.labels) == labels
    put_back(shares)
    assert [(list(p.waiting_labels), list(p.waiting_records)) for p in partitions] == before


@pytest.mark.parametrize("seed", range(20))
def test_turn_by_turn_everything_is_taken_once_and_in_order(seed: int) -> None:
    """And no label before a transaction that was published before it, but for the last ones."""
    draw = random.Random(seed)
    partitions = []
    for number in range(3):
        stamps = sorted(draw.randrange(100) for _ in range(30))
        partitions.append(waiting(number, stamps, sorted(draw.randrange(100) for _ in range(8))))
    expected = [(offsets(p.waiting_labels), offsets(p.waiting_records)) for p in partitions]
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in partitions]
    limit = draw.randrange(1, 9)
    for turn in range(1_000):
        caught_up = frozenset(p.number for p in partitions if not p.waiting_records)
        order = partitions[turn % 3 :] + partitions[: turn % 3]
        first = {p.number: p.waiting_records[0].timestamp for p in partitions if p.waiting_records}
        shares = take(order, caught_up, limit)
        assert sum(len(share.records) for share in shares) <= limit
        assert sum(len(share.labels) for share in shares) <= limit
        for share in shares:
            number = share.partition.number
            assert all(label.timestamp <= first.get(number, 100) for label in share.labels)
            found[number][0].extend(offsets(share.labels))
            found[number][1].extend(offsets(share.records))
        if not shares:
            break
    assert found == expected


def naive_within_limit(accounts: Sequence[str], limit: int) -> int:
    return max(n for n in range(len(accounts) + 1) if max(Counter(accounts[:n]).values(), default=0) <= limit)


@pytest.mark.parametrize("seed", range(20))
def test_within_limit_against_its_slow_twin(seed: int) -> None:
    draw = random.Random(seed)
    accounts = [f"a{draw.randrange(6)}" for _ in range(draw.randrange(60))]
    for limit in (1, 2, 8, 32):
        assert within_limit(accounts, limit) == naive_within_limit(accounts, limit)


def test_at_least_one_is_within_any_limit() -> None:
    """Else a turn would make no progress."""
    assert within_limit(["a"] * 3, 1) == 1


def test_the_queues_are_the_partitions_own() -> None:
    """`take` removes from them: nothing is held twice."""
    partition = waiting(0, [1, 2, 3])
    shares = inputs.take([partition], NOBODY, 2)
    assert isinstance(partition.waiting_records, deque)
    assert offsets(partition.waiting_records) == [2]
    assert offsets(shares[0].records) == [0, 1]
