"""Who scores which event: moments, supersession, failures; and turns that have one champion each."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from stream.engine.inputs import Share, keep_one_champion
from stream.engine.partition import Partition
from stream.kafka.memory.log import MemoryRecord
from stream.scoring.lineup import AT_ONCE, CHALLENGERS, CHAMPION, Change, Lineup
from tests.crash.small import FormulaScorer


@dataclass(frozen=True)
class Deployed:
    """The twin's memory of one change."""

    from_ms: int
    scorer: FormulaScorer


def naive_champion(history: list[Deployed], moment: int) -> FormulaScorer | None:
    """Walk through everything that was ever deployed."""
    found = None
    for deployed in history:
        if deployed.from_ms <= moment:
            found = deployed.scorer
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_last_deployed_whose_moment_has_come_scores(seed: int) -> None:
    generator = random.Random(seed)
    lineup, history = Lineup(), []
    for number in range(12):
        change = Deployed(generator.choice([AT_ONCE, generator.randrange(100)]), FormulaScorer(f"m{number}"))
        history.append(change)
        lineup.apply(Change(CHAMPION, change.scorer, change.from_ms))
        for moment in range(-1, 101, 3):
            assert lineup.champion_at(moment) is naive_champion(history, moment)
        for _ in range(20):
            first = generator.randrange(100)
            last = generator.randrange(first, 100)
            champions = {id(lineup.champion_at(moment)) for moment in range(first, last + 1)}
            assert len(champions) == 1 or lineup.changes_between(first, last)


def test_former_champions_are_forgotten_in_time_and_coming_ones_never() -> None:
    lineup = Lineup(FormulaScorer("m0"))
    coming = [FormulaScorer(f"m{number}") for number in range(1, 101)]
    for number, scorer in enumerate(coming):
        lineup.apply(Change(CHAMPION, scorer, 10 * number))
    assert all(lineup.champion_at(10 * number + 9) is scorer for number, scorer in enumerate(coming))
    lineup.begin_turn(995)
    lineup.apply(Change(CHAMPION, FormulaScorer("last"), 2_000))
    assert lineup.champion_at(999) is coming[-1]
    assert lineup.champion_at(985) is coming[-2], "a partition that lags"
    assert lineup.champion_at(5) is None, "forgotten: rules only, and flagged so"


def test_without_a_model_rules_alone() -> None:
    lineup = Lineup()
    assert lineup.current() is None
    lineup.apply(Change(CHAMPION, FormulaScorer("later"), 50))
    lineup.begin_turn(49)
    assert lineup.current() is None
    lineup.begin_turn(50)
    assert lineup.current() is not None


def test_one_that_fails_gives_way_to_the_one_before() -> None:
    first, second = FormulaScorer("first"), FormulaScorer("second")
    lineup = Lineup(first)
    lineup.apply(Change(CHAMPION, second, 10))
    lineup.begin_turn(10)
    assert lineup.current() is second
    assert lineup.drop(second) is first
    assert lineup.champion_at(1_000) is first
    assert lineup.drop(first) is None


def test_challengers_come_and_go() -> None:
    lineup = Lineup(FormulaScorer())
    second, first = FormulaScorer("b"), FormulaScorer("a")
    lineup.apply(Change(CHALLENGERS[1], second))
    lineup.apply(Change(CHALLENGERS[0], first))
    assert list(lineup.challengers.items()) == [(CHALLENGERS[0], first), (CHALLENGERS[1], second)]
    lineup.apply(Change(CHALLENGERS[0], None))
    lineup.drop_challenger(CHALLENGERS[1])
    assert not lineup.challengers
    with pytest.raises(ValueError, match="never emptied"):
        lineup.apply(Change(CHAMPION, None))


def record(offset: int, moment: int, topic: str = "transactions") -> MemoryRecord:
    return MemoryRecord(topic, 0, offset, moment, b"k", b"{}", ())


@pytest.mark.parametrize("seed", range(30))
def test_turns_are_cut_where_the_champion_changes(seed: int) -> None:
    """Every record is done once, in order, in a turn whose champion is its own; and nobody waits for ever."""
    generator = random.Random(seed)
    lineup = Lineup(FormulaScorer("m0"))
    for number in range(1, 4):
        lineup.apply(Change(CHAMPION, FormulaScorer(f"m{number}"), generator.randrange(60)))
    partitions = [Partition(number) for number in range(3)]
    for partition in partitions:
        moment = generator.randrange(30)
        for offset in range(generator.randrange(1, 40)):
            moment += generator.choice([0, 0, 1, 2, -1])
            partition.waiting_records.append(record(offset, moment))
        partition.waiting_labels.extend(record(offset, 0, "labels") for offset in range(3))
    expected = {p.number: [r.offset for r in p.waiting_records] for p in partitions}
    done: dict[int, list[int]] = {p.number: [] for p in partitions}
    labels: dict[int, int] = {p.number: 0 for p in partitions}
    for turn in range(500):
        order = partitions[turn % 3 :] + partitions[: turn % 3]
        shares = []
        for partition in order:
            share = Share(partition, [], [])
            share.labels.extend(partition.waiting_labels)
            partition.waiting_labels.clear()
            for _ in range(min(7, len(partition.waiting_records))):
                share.records.append(partition.waiting_records.popleft())
            if share.labels or share.records:
                shares.append(share)
        if not shares:
            break
        keep_one_champion(shares, lineup)
        assert shares
        for share in shares:
            assert all(lineup.champion_at(r.timestamp) is lineup.current() for r in share.records)
            # Labels are folded before the transactions that were behind them.
            labels[share.partition.number] += len(share.labels)
            assert not share.records or labels[share.partition.number] == 3
            done[share.partition.number] += [r.offset for r in share.records]
    assert done == expected
    assert set(labels.values()) == {3}
