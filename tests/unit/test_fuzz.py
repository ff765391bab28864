"""50,000 hostile messages, and what they must not do. `make fuzz` tries a million; bench/fuzz.py says how."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bench import fuzz
from bench.mutations import KINDS, Hostile, hostile
from stream.config import BatchSettings
from stream.events.decoder import Decoded
from stream.events.rejects import Reject, RejectCode, Stage

SEED = 20_261_126


@pytest.fixture(scope="module")
def report() -> fuzz.Report:
    return fuzz.run(50_000, SEED, worker_every=5)


def test_nothing_stops_slows_or_swells_a_worker(report: fuzz.Report) -> None:
    assert report.problems == {}
    assert report.messages == 50_000 == report.accepted + report.rejected.total()
    assert report.slowest_ms <= fuzz.LIMIT_MS
    assert report.peak_bytes <= fuzz.LIMIT_PEAK_BYTES
    assert report.rss_growth_bytes < 300 * 2**20


def test_every_kind_of_message_and_of_outcome_was_tried(report: fuzz.Report) -> None:
    assert set(report.kinds) == KINDS
    assert set(report.rejected) == set(RejectCode) - {RejectCode.BAD_VALUE}
    assert 5_000 < report.accepted < 45_000


def test_the_same_seed_gives_the_same_messages() -> None:
    first, again, other = (list(itertools.islice(hostile(seed, corpus=20), 50)) for seed in (1, 1, 2))
    assert first == again != other


class Broken(fuzz.Examined):
    """Goes wrong at messages that a test chooses."""

    def __init__(self, goes_wrong: Callable[[Decoded], Any]) -> None:
        super().__init__(BatchSettings())
        self._goes_wrong = goes_wrong

    def read(self, messages: Sequence[fuzz.Message], is_label: bool) -> Decoded:
        decoded = super().read(messages, is_label)
        self._goes_wrong(decoded)
        return decoded


def _raise(decoded: Decoded) -> None:
    if decoded.events and decoded.events[0].get("note"):
        raise KeyError("note")


def _spin(decoded: Decoded) -> None:
    if len(decoded.events) == 1 and "latitude" in decoded.events[0]:
        sum(range(1_500_000))


def _hoard(decoded: Decoded) -> None:
    bytearray(2 * fuzz.LIMIT_PEAK_BYTES)


def _swallow(decoded: Decoded) -> None:
    decoded.rejects[:] = [reject for reject in decoded.rejects if reject.code != RejectCode.NOT_JSON]


def _drop_a_neighbour(decoded: Decoded) -> None:
    if len(decoded.events) > 1:
        decoded.rejects.append(Reject(decoded.indices[0], Stage.DECODE, RejectCode.NOT_JSON, None, "value: because"))


def _say_nothing(decoded: Decoded) -> None:
    decoded.rejects[:] = [Reject(r.index, r.stage, r.code, r.field, "") for r in decoded.rejects]


@pytest.mark.parametrize(
    ("goes_wrong", "found"),
    [
        (_raise, "raised KeyError"),
        (_spin, "took more than 10 ms"),
        (_hoard, "took more than 32 MiB"),
        (_swallow, "has not exactly one outcome"),
        (_drop_a_neighbour, "becomes something else among others"),
        (_say_nothing, "has no reason, or an endless one"),
    ],
)
def test_the_fuzz_finds_what_goes_wrong(
    goes_wrong: Callable[[Decoded], Any], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_WARM_UP", 0)
    # What is slow on purpose stays so, however often it is measured again.
    monkeypatch.setattr(fuzz, "_REPEATS", 2)
    report = fuzz.run(fuzz.CHUNK, 3, worker_every=0, corpus=40, examined=Broken(goes_wrong))
    assert any(problem.startswith(found) for problem in report.problems), report.problems


def test_the_fuzz_finds_a_worker_that_stops_or_answers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(self: fuzz.MemoryWorker, messages: Sequence[Hostile]) -> list[str]:
        self.unanswered = 1
        return ["scored" for _ in messages]

    with monkeypatch.context() as patched:
        patched.setattr(fuzz.MemoryWorker, "work_off", lenient)
        problems = fuzz.run(50, 3, corpus=20).problems
        assert any("is scored in a worker, and invalid by itself" in problem for problem in problems)
        assert problems["events of a worker without an outcome"] == 1
    monkeypatch.setattr("stream.engine.turn.dead_letter", lambda *_, **__: 1 / 0)
    assert fuzz.run(50, 3, corpus=20).problems["a worker stopped: ZeroDivisionError"] == 1
