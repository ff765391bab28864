"""Sizing: rules that grow as they should, and a command that says what it assumes."""

from __future__ import annotations

from dataclasses import fields

import pytest

from stream.errors import ConfigError
from stream.sizing import Assumptions, size
from tests.unit.conftest import Shell


def test_a_small_load_needs_one_worker() -> None:
    found = size(100, 10_000, Assumptions())
    assert (found.workers, found.partitions, found.warnings) == (1, 4, ())


def test_workers_follow_the_cpu_of_an_event() -> None:
    assumed = Assumptions(worker_us=100, utilisation=0.5)
    assert size(10_000, 1_000_000, assumed).workers == 2
    assert size(10_001, 1_000_000, assumed).workers == 3
    assert size(100_000, 1_000_000, assumed).worker_cores == pytest.approx(20)


def test_each_worker_gets_as_many_partitions_and_their_number_can_double() -> None:
    for rate in (10, 3_000, 17_000, 250_000):
        found = size(rate, 1_000_000, Assumptions())
        assert found.partitions >= 2 * found.workers
        assert found.partitions % found.workers == 0
        assert rate / found.partitions <= Assumptions().partition_events_per_s


def test_redis_grows_with_the_accounts_and_its_one_core_is_spoken_of() -> None:
    assumed = Assumptions()
    small, large = size(1_000, 1_000_000, assumed), size(1_000, 2_000_000, assumed)
    assert large.redis_bytes == pytest.approx(2 * small.redis_bytes)
    assert not small.warnings
    assert any("one core" in warning for warning in size(100_000, 1_000_000, assumed).warnings)


@pytest.mark.parametrize(("rate", "accounts"), [(0, 1), (1, 0), (-5, 10)])
def test_nothing_is_not_a_load(rate: float, accounts: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        size(rate, accounts, Assumptions())


def test_the_command_prints_every_assumption(shell: Shell) -> None:
    ended = shell("size", "--rate", 2000, "--accounts", 5000000, "--assume", "worker_us=90")
    assert ended.code == 0
    assert all(field.name in ended.out for field in fields(Assumptions))
    document = shell("size", "--rate", 2000, "--accounts", 5000000, "--json").document
    assert document["workers"] == 1
    assert document["assumptions"]["worker_us"] == Assumptions().worker_us


@pytest.mark.parametrize("word", ["worker_us=-1", "worker_us=much", "nothing=3", "worker_us"])
def test_what_cannot_be_assumed_is_named(word: str, shell: Shell) -> None:
    ended = shell("size", "--rate", 1, "--accounts", 1, "--assume", word)
    assert ended.code == ConfigError.exit_code
    assert word in ended.err
