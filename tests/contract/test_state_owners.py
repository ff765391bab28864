"""What every page store promises about owners: from a claim on, nobody else writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream.errors import StateLostError
from stream.state.store import FORMER_OWNERS, Checkpoint, Head
from tests.contract.owner import Owner
from tests.contract.stores import Backend, row


def test_a_claim_says_who_was_there_before_and_leaves_the_checkpoint(backend: Backend, unique: str) -> None:
    store = backend.store(unique)
    assert store.load_head(3) is None
    assert store.claim(3, "group-w0", 5_000) == Head(5_000, ("group-w0",), None)
    # A clock that stands still, or runs behind: the epoch rises all the same.
    second = store.claim(3, "group w1/ä%", 4_000)
    assert second == Head(5_001, ("group w1/ä%", "group-w0"), None) == store.load_head(3)
    # Asked again after a lost answer: nobody is forgotten.
    second = store.claim(3, "group w1/ä%", 5_000)
    assert second == Head(5_002, ("group w1/ä%", "group-w0"), None)
    written = store.write_checkpoints({3: Checkpoint(7, 1)}, {3: second})[3]
    assert written == Head(5_002, ("group w1/ä%",), Checkpoint(7, 1)) == store.load_head(3)
    assert store.claim(3, "group-w0", 9_000) == Head(9_000, ("group-w0", "group w1/ä%"), Checkpoint(7, 1))
    assert store.load_head(4) is None


def test_former_owners_are_remembered_but_not_without_end(store: Owner) -> None:
    for number in range(FORMER_OWNERS + 9):
        store.store.claim(0, f"group-w{number}", 1_000)
    last = store.claim(0)
    assert len(last.owners) == FORMER_OWNERS
    assert last.owners[:3] == ("group-w0", f"group-w{FORMER_OWNERS + 8}", f"group-w{FORMER_OWNERS + 7}")


def test_a_former_owner_writes_nothing_from_the_claim_on(backend: Backend, unique: str) -> None:
    """The new owner has written nothing yet: every offset of the zombie is greater, and only the epoch refuses it."""
    zombie, owner = Owner(backend.store(unique)), Owner(backend.store(unique), "group-w1")
    keys = {number: zombie.row_key(number, "merchant", "m") for number in (1, 2)}
    zombie.write_rows({key: row(10, 2) for key in keys.values()})
    zombie.publish_copies("merchant", 1, {"m": row(10, 2)})
    zombie.write_checkpoint(1, Checkpoint(10, 2))
    names = backend.key_names(unique)
    owner.claim(1)
    calls: list[Callable[[], object]] = [
        lambda: zombie.write_rows({keys[1]: row(15, 2), zombie.row_key(1, "account", "new"): row(15)}),
        lambda: zombie.publish_copies("merchant", 1, {"m": row(15, 2), "n": row(15)}),
        lambda: zombie.write_checkpoint(1, Checkpoint(15, 2)),
        lambda: zombie.load_rows([keys[1]], [1]),
        lambda: zombie.clear(1),
    ]
    for call in calls:
        with pytest.raises(StateLostError, match="partition 1"):
            call()
    assert sorted(backend.key_names(unique)) == sorted(names)
    assert owner.load_rows([keys[1]], [1]) == [row(10, 2)]
    assert owner.read_copies("merchant", ["m"]) == [{1: row(10, 2)}]
    assert owner.load_checkpoint(1) == Checkpoint(10, 2)
    # Of the partition that nobody claimed it is the owner still.
    assert zombie.write_rows({keys[2]: row(15, 2)}) == 1
    with pytest.raises(StateLostError):
        zombie.write_rows({keys[1]: row(16, 2), keys[2]: row(16, 2)})


def test_a_claim_is_new_even_where_the_store_lost_the_old_one(backend: Backend, unique: str) -> None:
    """FLUSHALL, then a claim: the epoch of an owner from before must not come back."""
    zombie, owner = Owner(backend.store(unique)), Owner(backend.store(unique), now_ms=2_000)
    key = zombie.row_key(0, "account", "a")
    zombie.write_rows({key: row(1)})
    backend.lose(unique)
    for _ in range(2):
        with pytest.raises(StateLostError):
            zombie.write_rows({key: row(2)})
        with pytest.raises(StateLostError):
            zombie.publish_copies("merchant", 0, {"m": row(2)})
        with pytest.raises(StateLostError):
            zombie.write_checkpoint(0, Checkpoint(2, 0))
        assert [name for name in backend.key_names(unique) if not name.endswith((b":head", b":epochs"))] == []
        owner.claim(0)
    assert owner.load_rows([key], [0]) == [None]


def test_an_owner_whose_claim_a_promoted_replica_lacks_is_refused(backend: Backend, unique: str) -> None:
    zombie, owner = Owner(backend.store(unique)), Owner(backend.store(unique), "group-w1")
    key = zombie.row_key(0, "account", "a")
    zombie.write_rows({key: row(1)})
    zombie.write_checkpoint(0, Checkpoint(1, 0))
    replica = backend.save(unique)
    owner.claim(0)
    owner.write_rows({key: row(5)})
    owner.write_checkpoint(0, Checkpoint(5, 0))
    backend.lose(unique, replica)
    for call in (
        lambda: owner.write_rows({key: row(6)}),
        lambda: owner.load_rows([key], [0]),
        lambda: owner.write_checkpoint(0, Checkpoint(6, 0)),
        lambda: owner.publish_copies("merchant", 0, {"m": row(6)}),
    ):
        with pytest.raises(StateLostError):
            call()
    # The zombie may go on where it stood until the owner claims again: no harm, for nothing of it is in memory yet.
    assert zombie.write_rows({key: row(2)}) == 1
    assert owner.claim(0).checkpoint == Checkpoint(1, 0)
    with pytest.raises(StateLostError):
        zombie.write_rows({key: row(3)})
    assert owner.write_rows({key: row(6)}) == 1
