"""What a takeover does not do twice, because nobody scores meanwhile."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from stream.clock import ManualClock
from stream.kafka.memory import MemoryBroker, client
from tests.crash.cluster import GROUP, Cluster
from tests.crash.scenes import turn
from tests.crash.traffic import Chunk, Traffic

PARTITIONS = 4


@pytest.mark.parametrize("is_open", [True, False])
def test_a_dead_owner_is_looked_for_once_for_all_its_partitions(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, *, is_open: bool
) -> None:
    cluster = Cluster(clock, partitions=PARTITIONS)
    traffic = Traffic(5, PARTITIONS)
    owner = cluster.worker("w0")
    cluster.publish(Chunk(tuple(traffic.event(account) for account in traffic.accounts)))
    turn(owner.run_once, clock, 40)
    if is_open:
        owner._transactions._producer.begin()
        owner._transactions._producer.produce("risk-scores", b"{}", key=b"a")
    asked, made = Counter[str](), Counter[str]()
    ask, connect = MemoryBroker.is_abandoned, client.MemoryKafka.reader

    def is_abandoned(broker: MemoryBroker, name: str, *rest: Any) -> bool:
        asked[name] += 1
        return ask(broker, name, *rest)

    def reader(kafka: client.MemoryKafka) -> Any:
        made["reader"] += 1
        return connect(kafka)

    owner.flush_all()
    monkeypatch.setattr(MemoryBroker, "is_abandoned", is_abandoned)
    monkeypatch.setattr(client.MemoryKafka, "reader", reader)
    cluster.broker.expel(GROUP, "w0")
    heir = cluster.worker("w1")
    turn(heir.run_once, clock, 5)
    assert heir.assigned == PARTITIONS
    assert not heir.restoring()
    assert asked == {f"{GROUP}-w0": 1}
    assert not made, "nothing is to be replayed, so nothing is read"
    assert not MemoryBroker.is_abandoned(cluster.broker, f"{GROUP}-w0", GROUP, "w0")
