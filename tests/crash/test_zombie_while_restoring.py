"""A zombie in the middle of its flush while the new owner restores: the rows that the owner has not loaded yet stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from stream.clock import ManualClock
from stream.engine import flush
from stream.engine.worker import Worker
from stream.errors import StateLostError
from stream.state import memory
from stream.state.store import Head
from tests.crash.cluster import GROUP, TOPICS, Cluster
from tests.crash.scenes import turn
from tests.crash.traffic import Chunk, Traffic
from tests.crash.undisturbed import compare

GIVEN = {"batch.max_events": 2, "state.flush_interval_ms": 10**6}
ZOMBIE_WROTE = "the zombie wrote rows"
POINTS = ["flush:after_chunk", "flush:after_accounts"]


def play(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, point: str, meanwhile: Callable[[Cluster], object]
) -> list[str]:
    """The zombie stops at `point`; its successor restores two steps, and more once the zombie has gone on.

    Returns complaints, the first of them if the zombie wrote rows then.
    """
    monkeypatch.setattr(flush, "_WRITE_ROWS", 1)
    cluster = Cluster(clock, partitions=1, given=GIVEN)
    traffic = Traffic(31, 1)
    account = traffic.accounts[0]
    # The account, which the zombie's first chunk does not hold, is loaded in the replay's first step (8 records);
    # m1, which others fill, in the second.
    others = [traffic.accounts[1 + i % 4] for i in range(15)]
    items = [traffic.event(name, merchant_id=f"m{i // 9}", device_id=None) for i, name in enumerate(others)]
    items.insert(1, traffic.event(account, merchant_id="m0", device_id=None))
    items += [traffic.event(account, merchant_id="m1", device_id=None) for _ in range(8)]
    owner: list[Worker] = []
    stored: dict[bytes, bytes] = {}

    def stand_still(at: str) -> None:
        if at != point or owner or cluster.committed().get((TOPICS.transactions, 0)) != len(items):
            return
        cluster.broker.expel(GROUP, "w0")
        owner.append(cluster.worker("w1"))
        for _ in range(200):
            owner[0].run_once()
            clock.advance_ms(20)
            if 0 < owner[0].restoring().get(0, 0) <= 16:
                break
        assert owner[0].restoring().get(0, 0) > 0, "the owner is in the middle of its restore"
        meanwhile(cluster)
        stored.update(cluster.server.rows)

    zombie = cluster.worker("w0", stand_still)
    cluster.publish(Chunk(tuple(items)))
    turn(zombie.run_once, clock, 40)
    assert cluster.committed()[TOPICS.transactions, 0] == len(items)
    with pytest.raises(StateLostError):
        zombie.flush_all()
    complaints = [] if cluster.server.rows == stored else [ZOMBIE_WROTE]
    turn(owner[0].run_once, clock, 40)
    assert not owner[0].restoring()
    cluster.publish(Chunk(tuple(traffic.event(account, merchant_id="m1") for _ in range(6))))
    turn(owner[0].run_once, clock, 40)
    owner[0].finish()
    assert cluster.drained()
    cluster.check_rows()
    return complaints + cluster.complaints + compare(cluster, clock, given=GIVEN)


@pytest.mark.parametrize("point", POINTS)
def test_what_the_owner_has_not_loaded_yet_stays_as_it_was(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    assert play(clock, monkeypatch, point, lambda cluster: None) == []


@pytest.mark.parametrize("lost", ["everything", "the claim"])
def test_nor_after_the_store_has_lost_the_claim(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """FLUSHALL, or a replica promoted that lacks the claim: the owner finds out, and claims again."""

    def lose(cluster: Cluster) -> None:
        server = cluster.server
        if lost == "everything":
            server.flush_all()
        else:
            older = {name: head._replace(epoch=head.epoch - 1) for name, head in server.heads.items()}
            server.heads.update(older)

    assert play(clock, monkeypatch, "flush:after_accounts", lose) == []


def test_without_the_epoch_the_zombie_would_write(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """This scene can fail: a store that takes rows of anybody gives the owner rows from the future."""
    write = memory.MemoryStore.write_rows

    def of_anybody(self: memory.MemoryStore, rows: Mapping[bytes, bytes], heads: Mapping[int, Head]) -> int:
        return write(self, rows, {number: self.load_head(number) or head for number, head in heads.items()})

    monkeypatch.setattr(memory.MemoryStore, "write_rows", of_anybody)
    assert ZOMBIE_WROTE in play(clock, monkeypatch, "flush:after_chunk", lambda cluster: None)
