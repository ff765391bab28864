"""What every page store promises: the in-memory reference, real Redis, and the embedded server."""

from __future__ import annotations

import itertools
import random
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import StateLostError
from stream.state.memory import MemoryStore
from stream.state.rules import replaces
from stream.state.store import Checkpoint, Head, StateStore
from tests.contract.owner import Owner
from tests.contract.stores import SPEC, Backend, row

_names = itertools.count()


def test_absent_rows_are_none_and_written_rows_come_back_in_the_order_asked(store: Owner) -> None:
    first, second, absent = (store.row_key(0, "account", name) for name in ("a", "b", "c"))
    assert store.write_rows({first: row(1, body=b"\x00\xff\r\n"), second: row(2)}) == 2
    assert store.load_rows([second, absent, first, second]) == [row(2), None, row(1, body=b"\x00\xff\r\n"), row(2)]


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        ((5, 5), (6, 5), True),
        ((5, 5), (5, 6), True),
        ((5, 5), (6, 6), True),
        ((5, 5), (5, 5), False),
        ((5, 5), (4, 9), False),
        ((5, 5), (9, 4), False),
        ((5, 5), (4, 5), False),
        ((5, 5), (5, 4), False),
        ((0, 0), (0, 0), False),
        # Values that a double would round, halves that carry, and a sign.
        ((2**53, 0), (2**53 + 1, 0), True),
        ((2**53 + 1, 0), (2**53, 0), False),
        ((2**31 - 1, 7), (2**31, 7), True),
        ((2**31, 7), (2**31 - 1, 7), False),
        ((2**32 - 1, 7), (2**32, 7), True),
        ((2**32, 7), (2**32 - 1, 8), False),
        ((-1, 0), (0, 0), True),
        ((0, 0), (-1, 0), False),
        ((2**63 - 2, 0), (2**63 - 1, 0), True),
        ((-(2**63), 0), (2**63 - 1, 0), True),
    ],
)
def test_a_row_gives_way_only_to_greater_offsets(
    store: Owner, old: tuple[int, int], new: tuple[int, int], replaced: bool
) -> None:
    key = store.row_key(3, "account", "a")
    assert store.write_rows({key: row(*old, b"old")}) == 1
    assert store.write_rows({key: row(*new, b"new")}) == int(replaced)
    assert store.load_rows([key]) == [row(*new, b"new") if replaced else row(*old, b"old")]
    store.publish_copies("merchant", 3, {"m": row(*old, b"old")})
    store.publish_copies("merchant", 3, {"m": row(*new, b"new")})
    assert store.read_copies("merchant", ["m"]) == [{3: row(*new, b"new") if replaced else row(*old, b"old")}]


def test_one_call_replaces_the_newer_rows_and_leaves_the_others(store: Owner) -> None:
    keys = [store.row_key(number % 3, "account", str(number)) for number in range(6)]
    store.write_rows({key: row(10, body=b"old") for key in keys})
    offsets = [9, 10, 11, 12, 10, 30]
    assert store.write_rows({key: row(at, body=b"new") for key, at in zip(keys, offsets, strict=True)}) == 3
    loaded = store.load_rows(keys, {})
    assert [found[16:] for found in loaded if found] == [b"old", b"old", b"new", b"new", b"old", b"new"]


def test_a_row_without_its_offsets_is_refused_before_anything_is_written(store: Owner) -> None:
    good, bad = store.row_key(0, "account", "good"), store.row_key(0, "account", "bad")
    with pytest.raises(ValueError, match="16 bytes"):
        store.write_rows({good: row(1), bad: b"short"})
    with pytest.raises(ValueError, match="16 bytes"):
        store.publish_copies("merchant", 0, {"m": b""})
    assert store.load_rows([good]) == [None]


def test_writers_at_the_same_time_leave_the_greatest(backend: Backend, unique: str) -> None:
    first = Owner(backend.store(unique))
    keys = [first.row_key(number % 2, "account", str(number)) for number in range(20)]
    heads = {number: first.claim(number) for number in (0, 1)}
    counts: list[int] = []

    def write(seed: int) -> None:
        mine, chance = Owner(backend.store(unique)), random.Random(seed)
        mine.heads |= heads
        counts.append(sum(mine.write_rows({key: row(chance.randrange(1000)) for key in keys}) for _ in range(15)))

    seeds = (1, 2, 3)
    threads = [threading.Thread(target=write, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    greatest = dict.fromkeys(keys, -1)
    for seed in seeds:
        chance = random.Random(seed)
        for _ in range(15):
            for key in keys:
                greatest[key] = max(greatest[key], chance.randrange(1000))
    loaded = backend.store(unique).load_rows(keys, {})
    assert [struct.unpack_from("<q", found or b"")[0] for found in loaded] == list(greatest.values())
    assert len(keys) <= sum(counts) <= 3 * 15 * len(keys)


def test_of_two_that_write_one_checkpoint_one_wins(backend: Backend, unique: str) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def write(mine: StateStore, head: Head, at: int) -> None:
        barrier.wait()
        try:
            mine.write_checkpoints({0: Checkpoint(at, 0)}, {0: head})
            outcomes.append("won")
        except StateLostError:
            outcomes.append("lost")

    for _ in range(5):
        stores = [backend.store(unique) for _ in range(2)]
        head = stores[0].claim(0, "group-w0", 1_000)
        threads = [threading.Thread(target=write, args=(mine, head, at)) for at, mine in enumerate(stores, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stores[0].clear(0, stores[0].claim(0, "group-w0", 1_000))
    assert outcomes.count("won") == outcomes.count("lost") == 5


def test_a_checkpoint_is_written_only_over_the_one_expected(store: Owner) -> None:
    store.write_checkpoint(2, Checkpoint(5, 1))
    assert store.load_checkpoint(2) == Checkpoint(5, 1)
    right = store.head(2)
    for wrong in (None, Checkpoint(5, 0), Checkpoint(4, 1)):
        with pytest.raises(StateLostError):
            store.store.write_checkpoints({2: Checkpoint(6, 1)}, {2: right._replace(checkpoint=wrong)})
    with pytest.raises(StateLostError):
        store.store.write_checkpoints({2: Checkpoint(6, 1)}, {2: right._replace(epoch=right.epoch + 1)})
    store.write_checkpoint(2, Checkpoint(2**53 + 1, 2))
    assert store.load_checkpoint(2) == Checkpoint(2**53 + 1, 2)
    assert store.load_checkpoint(1) is None


def test_checkpoints_of_several_partitions_are_written_at_once_each_over_its_own_head(store: Owner) -> None:
    store.write_checkpoints({number: Checkpoint(number, 1) for number in range(4)})
    assert [store.load_checkpoint(number) for number in range(4)] == [Checkpoint(number, 1) for number in range(4)]
    heads = {number: store.head(number) for number in range(4)}
    store.store.claim(3, "group-w9", 2_000)
    with pytest.raises(StateLostError, match="partition 3"):
        store.store.write_checkpoints({number: Checkpoint(9, 9) for number in range(4)}, heads)
    assert store.load_checkpoint(3) == Checkpoint(3, 1)
    assert store.store.write_checkpoints({}, {}) == {}


def test_a_checkpoint_of_a_partition_that_nobody_claimed_is_refused(store: Owner) -> None:
    with pytest.raises(StateLostError):
        store.store.write_checkpoints({2: Checkpoint(2, 2)}, {2: Head(1, ("group-w0",), None)})


def test_writing_a_checkpoint_again_is_a_success(store: Owner) -> None:
    """A client that lost the answer asks again."""
    head = store.head(0)
    for _ in range(2):
        store.store.write_checkpoints({0: Checkpoint(5, 1)}, {0: head})
    assert store.load_checkpoint(0) == Checkpoint(5, 1)


def test_rows_are_believed_only_beside_the_head_known(backend: Backend, unique: str) -> None:
    store = Owner(backend.store(unique))
    key = store.row_key(0, "account", "a")
    store.write_rows({key: row(10)})
    for partition, checkpoint in {0: Checkpoint(10, 0), 1: Checkpoint(7, 0)}.items():
        store.write_checkpoint(partition, checkpoint)
    older = backend.save(unique)
    assert store.load_rows([key], [0, 1]) == [row(10)]
    store.write_checkpoint(1, Checkpoint(8, 0))

    backend.lose(unique, older)
    with pytest.raises(StateLostError, match="partition 1"):
        store.load_rows([key], [0, 1])
    with pytest.raises(StateLostError, match="partition 1"):
        store.write_rows({store.row_key(1, "account", "b"): row(9)})
    assert store.load_rows([key], [0]) == [row(10)]

    backend.lose(unique)
    for wanted in ([key], []):
        with pytest.raises(StateLostError):
            store.load_rows(wanted, [0, 1])
    with pytest.raises(StateLostError):
        store.write_rows({key: row(11)})
    assert store.load_rows([key]) == [None]


def test_namespaces_specs_and_secrets_do_not_see_each_other(backend: Backend, unique: str) -> None:
    stores = [
        Owner(backend.store(unique)),
        Owner(backend.store(unique + "-other")),
        Owner(backend.store(unique, spec_id="f" * 16)),
    ]
    for number, store in enumerate(stores, 1):
        store.write_rows({store.row_key(0, "account", "a"): row(number)})
        store.write_checkpoint(0, Checkpoint(number, 0))
        store.publish_copies("merchant", 0, {"m": row(number)})
    for number, store in enumerate(stores, 1):
        assert store.load_rows([store.row_key(0, "account", "a")], [0]) == [row(number)]
        assert store.read_copies("merchant", ["m"]) == [{0: row(number)}]
    assert stores[0].clear(0) == 2
    assert stores[1].load_checkpoint(0) == Checkpoint(2, 0)
    assert stores[2].load_checkpoint(0) == Checkpoint(3, 0)
    secretive = backend.store(unique, secret="another-secret")
    assert secretive.row_key(0, "account", "a") != stores[0].row_key(0, "account", "a")


def test_key_names_tell_the_partition_and_hide_the_identity(backend: Backend, unique: str) -> None:
    store, twin = Owner(backend.store(unique)), backend.store(unique)
    identities = ["4111111111111111", "{3}*", "ünï\u20ac", "", "a" * 1000, "\ud800"]
    names = {store.row_key(3, "account", identity) for identity in identities}
    assert len(names) == len(identities)
    assert names == {twin.row_key(3, "account", identity) for identity in identities}
    assert names.isdisjoint({store.row_key(4, "account", identity) for identity in identities})
    assert names.isdisjoint({store.row_key(3, "merchant", identity) for identity in identities})
    store.write_rows(dict.fromkeys(names, row(1)))
    store.publish_copies("merchant", 3, dict.fromkeys(identities, row(1)))
    store.write_checkpoint(3, Checkpoint(1, 0))
    everything = [name for name in backend.key_names(unique) if not name.endswith(b":epochs")]
    assert len(everything) == 2 * len(identities) + 1
    for name in everything:
        assert name.startswith(b"{%b:" % unique.encode())
        assert name.count(b"{") == name.count(b"}") == 1
        for identity in identities[:3]:
            assert identity.encode() not in name
    tag = b"{%b:%b:3}" % (unique.encode(), SPEC.encode())
    assert all(name.startswith(tag) for name in names)


def test_a_namespace_of_any_characters_makes_safe_names(backend: Backend, unique: str) -> None:
    store = Owner(backend.store(f"{unique}:*}}{{?["))
    key = store.row_key(0, "account", "a")
    assert store.write_rows({key: row(1)}) == 1
    store.write_checkpoint(0, Checkpoint(1, 0))
    assert store.load_rows([key], [0]) == [row(1)]
    assert Owner(backend.store(f"{unique}:*")).clear(0) == 0
    assert store.clear(0) == 2


def test_each_partition_shows_its_own_copy_of_an_entity(backend: Backend, unique: str) -> None:
    first, second = Owner(backend.store(unique)), Owner(backend.store(unique))
    first.publish_copies("merchant", 0, {"m": row(1, body=b"zero"), "n": row(1)})
    second.publish_copies("merchant", 11, {"m": row(900, body=b"eleven")})
    second.publish_copies("terminal", 11, {"m": row(5)})
    expected = [{0: row(1, body=b"zero"), 11: row(900, body=b"eleven")}, {}, {0: row(1)}]
    assert first.read_copies("merchant", ["m", "absent", "n"]) == expected
    assert second.read_copies("terminal", ["m", "m"]) == [{11: row(5)}, {11: row(5)}]


def test_a_partition_is_not_shown_its_own_copy(backend: Backend, unique: str) -> None:
    store = Owner(backend.store(unique))
    for partition in (1, 2, 11):
        store.publish_copies("merchant", partition, {"m": row(partition)})
    store.publish_copies("merchant", 1, {"alone": row(1)})
    names = [("merchant", "m"), ("merchant", "alone"), ("merchant", "m"), ("merchant", "alone")]
    found = store.store.read_copies(names, [1, 1, 11, 2])
    assert found == [{2: row(2), 11: row(11)}, {}, {1: row(1), 2: row(2)}, {1: row(1)}]


def test_clear_removes_one_partition_and_says_how_much(backend: Backend, unique: str) -> None:
    store = Owner(backend.store(unique))
    for partition in (1, 10, 2):
        rows = {store.row_key(partition, "account", str(number)): row(1) for number in range(50)}
        rows |= {store.row_key(partition, "merchant", str(number)): row(1) for number in range(5)}
        store.write_rows(rows)
        store.write_checkpoint(partition, Checkpoint(1, 0))
        store.publish_copies("merchant", partition, {str(number): row(9) for number in range(30)})
    assert store.clear(1) == 56
    assert store.clear(1) == 0
    assert store.load_checkpoint(1) is None
    assert store.load_rows([store.row_key(1, "account", "0")], [1]) == [None]
    assert store.load_rows([store.row_key(10, "account", "0")], [10]) == [row(1)]
    assert [set(copies) for copies in store.read_copies("merchant", ["0", "29"])] == [{10, 2}, {10, 2}]
    # After a rebuild a partition may show copies with lower offsets than before.
    store.publish_copies("merchant", 1, {"0": row(2)})
    assert store.read_copies("merchant", ["0"])[0][1] == row(2)


def test_calls_without_anything_to_do_do_nothing(store: Owner) -> None:
    assert store.load_rows([]) == []
    assert store.write_rows({}) == 0
    assert store.read_copies("merchant", []) == []
    store.publish_copies("merchant", 0, {})
    assert store.clear(0) == 0


def test_five_thousand_rows_of_several_partitions(store: Owner) -> None:
    chance = random.Random(4)
    keys = [store.row_key(number % 7, "account", str(number)) for number in range(5_000)]
    rows = {key: row(1, body=chance.randbytes(1_000)) for key in keys}
    assert store.write_rows(rows) == 5_000
    for partition in range(7):
        store.write_checkpoint(partition, Checkpoint(1, 0))
    assert store.load_rows(keys, range(7)) == list(rows.values())
    newer = {key: row(2) for key in keys[::2]}
    assert store.write_rows(rows | newer) == 2_500
    assert store.load_rows(keys[:4]) == [row(2), rows[keys[1]], row(2), rows[keys[3]]]
    copies = {str(number): row(1, body=chance.randbytes(500)) for number in range(5_000)}
    store.publish_copies("device", 1, copies)
    assert store.read_copies("device", list(copies)) == [{1: copy} for copy in copies.values()]


def test_what_is_written_takes_memory(store: Owner) -> None:
    before = store.store.memory()
    store.write_rows({store.row_key(0, "account", str(number)): row(1, 0) + bytes(1_000) for number in range(200)})
    after = store.store.memory()
    assert before.used_bytes + 100_000 < after.used_bytes < after.limit_bytes == before.limit_bytes


def test_a_healthy_store_has_findings_and_no_error(store: Owner) -> None:
    findings = store.store.check()
    assert findings
    assert {finding.level for finding in findings} <= {"ok", "warning"}
    assert all(finding.remedy for finding in findings if finding.level != "ok")


_offsets = st.tuples(st.integers(0, 3), st.integers(0, 3))
_identity = st.sampled_from("abc")
_partition = st.integers(0, 2)
_worker = st.integers(0, 1)
_checkpoint = st.builds(Checkpoint, st.integers(0, 2), st.integers(0, 1))
_rows = st.dictionaries(st.tuples(_partition, _identity), _offsets, max_size=6)
_operation = st.one_of(
    st.tuples(st.just("claim"), _partition),
    st.tuples(st.just("write"), _rows),
    st.tuples(st.just("load"), st.lists(st.tuples(_partition, _identity)), st.sets(_partition)),
    st.tuples(st.just("checkpoint"), _partition, _checkpoint),
    st.tuples(st.just("publish"), _partition, st.dictionaries(_identity, _offsets)),
    st.tuples(st.just("read"), st.lists(_identity)),
    st.tuples(st.just("clear"), _partition),
)


def _apply(owner: Owner, operation: tuple) -> object:  # type: ignore[type-arg]
    match operation:
        case ("claim", partition):
            return owner.claim(partition)
        case ("write", rows):
            return owner.write_rows({owner.row_key(p, "account", name): row(*at) for (p, name), at in rows.items()})
        case ("load", wanted, partitions):
            return owner.load_rows([owner.row_key(p, "account", name) for p, name in wanted], partitions)
        case ("checkpoint", partition, to):
            owner.write_checkpoint(partition, to)
            return owner.load_checkpoint(partition)
        case ("publish", partition, copies):
            return owner.publish_copies("merchant", partition, {name: row(*at) for name, at in copies.items()})
        case ("read", names):
            return owner.read_copies("merchant", names)
        case ("clear", partition):
            return owner.clear(partition)
    raise AssertionError(operation)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(operations=st.lists(st.tuples(_worker, _operation), max_size=30))
def test_any_series_of_calls_of_two_workers_has_the_answers_of_the_reference(
    backend: Backend,
    operations: list[tuple[int, tuple]],  # type: ignore[type-arg]
) -> None:
    tried, reference = backend.store(f"series-{next(_names)}"), MemoryStore()
    owners = [[Owner(store, f"group-w{number}") for number in (0, 1)] for store in (tried, reference)]
    for worker, operation in operations:
        answers: list[object] = []
        for pair in owners:
            try:
                answers.append(_apply(pair[worker], operation))
            except StateLostError:
                answers.append(StateLostError)
        assert answers[0] == answers[1]


@settings(max_examples=100, derandomize=True, database=None)
@given(new=_offsets, old=_offsets)
def test_the_rule_itself(new: tuple[int, int], old: tuple[int, int]) -> None:
    lower = any(n < o for n, o in zip(new, old, strict=True))
    greater = any(n > o for n, o in zip(new, old, strict=True))
    assert replaces(row(*new), row(*old)) == (greater and not lower)
    assert replaces(row(*new), None)
