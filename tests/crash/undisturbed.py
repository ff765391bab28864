"""The same input through one worker that nothing disturbs, its labels folded where another run folded them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping

from stream.clock import ManualClock
from stream.kafka.port import Record, TopicPartition
from tests.checker import checks as checker
from tests.crash.cluster import TOPICS, Cluster

Part = tuple[str, int]
"""Publish this topic's records up to this offset."""


def run_undisturbed(
    clock: ManualClock, contents: checker.Contents, given: Mapping[str, object] | None = None
) -> Cluster:
    """Publishes transactions up to where labels were folded, waits until they are done, then the labels, and so on."""
    partitions = len(contents.transactions)
    cluster = Cluster(clock, partitions=partitions, given=given)
    worker = cluster.worker("undisturbed")
    plans = {p: plan_of(contents, p) for p in range(partitions)}
    pending = {(TOPICS.transactions, p): list(contents.transactions[p]) for p in range(partitions)}
    pending |= {(TOPICS.labels, p): list(contents.labels[p]) for p in range(partitions)}
    while any(plans.values()):
        for partition, plan in plans.items():
            if plan:
                topic, end = plan.pop(0)
                _append(cluster, TopicPartition(topic, partition), pending[topic, partition], end)
        for _ in range(1_000):
            worker.run_once()
            clock.advance_ms(20)
            if cluster.drained():
                break
        else:
            raise AssertionError("the undisturbed run does not end")
    worker.finish()
    return cluster


def plan_of(
    contents: checker.Contents, partition: int, topics: tuple[str, str] = (TOPICS.transactions, TOPICS.labels)
) -> list[Part]:
    """Alternately transactions and labels, by what the scores say was known."""
    transactions, verdicts = topics
    parts: list[Part] = []
    known = 0
    for offset, labels in checker.labels_known(contents.scores, partition):
        if labels > known:
            parts += [(transactions, offset), (verdicts, labels)]
            known = labels
    return [*parts, (transactions, 2**62), (verdicts, 2**62)]


def _append(cluster: Cluster, where: TopicPartition, pending: list[Record], end: int) -> None:
    """The records below `end` at the offsets that they had: what lies between them was never visible."""
    log = cluster.broker.log(where)
    while pending and pending[0].offset < end:
        record = pending.pop(0)
        log._slots.extend([None] * (record.offset - log.next_offset))
        cluster.broker.append(
            where.topic, record.value, key=record.key, headers=record.headers, partition=where.partition,
            timestamp_ms=record.timestamp,
        )  # fmt: skip


def compare(cluster: Cluster, clock: ManualClock, *, given: Mapping[str, object] | None = None) -> list[str]:
    """How a run's scores, alerts and rows differ from those of an undisturbed run over the same log."""
    contents = cluster.contents()
    other = run_undisturbed(clock, contents, given)
    expected = other.contents()
    found = checker.differences(contents.scores, expected.scores, without=frozenset({"degraded"}))
    found += checker.differences(contents.alerts, expected.alerts, without=frozenset({"degraded"}))
    found += checker.row_differences(cluster.server.rows, other.server.rows)
    return found + _checkpoint_differences(cluster, other)


def _checkpoint_differences(cluster: Cluster, other: Cluster) -> list[str]:
    """W is C in both, and the same but for markers behind the last record, which the other log does not have."""
    found = []
    for name, expected in other.server.checkpoints.items():
        held = cluster.server.checkpoints.get(name)
        if held is None or any(one < other_one for one, other_one in zip(held, expected, strict=True)):
            found.append(f"the checkpoint is {held}, not {expected}")
    committed = cluster.committed()
    at_commit = sorted(
        (committed.get((TOPICS.transactions, p), 0), committed.get((TOPICS.labels, p), 0))
        for p in range(cluster.partitions)
    )
    if sorted(map(tuple, cluster.server.checkpoints.values())) != at_commit:
        found.append(f"the checkpoints {cluster.server.checkpoints} are not the committed offsets {at_commit}")
    return found


def gaps(records: Mapping[int, list[Record]]) -> Iterator[int]:
    """Offsets missing between records, by partition: traffic without any would test less."""
    missing: dict[int, int] = defaultdict(int)
    for partition, found in records.items():
        for before, after in itertools.pairwise(found):
            missing[partition] += after.offset - before.offset - 1
    yield from missing.values()
