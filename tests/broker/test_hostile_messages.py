"""A message cannot make a worker read a file, open a connection or run code.

Python's audit hooks see every open, connect, exec, import and load of a library in this process, those of
compiled modules that go through Python's own functions included.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import sys
import threading
from pathlib import Path

import pytest

from bench.memory_worker import MemoryWorker
from bench.mutations import NOW_MS, Hostile, hostile
from stream.config import BatchSettings
from stream.domains.payments import DOMAIN
from stream.scoring.bundle import verify
from stream.scoring.scorer import TorchScorer

HARMLESS = frozenset(
    {"builtins.id", "object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe", "array.__new__"}
)
"""Looking at an object, which Python reports too."""


class Watch:
    """Notes what happens between `begin` and `end`. A hook cannot be taken away again: it only falls asleep."""

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}
        self._awake = False
        self._others: set[int] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._awake and event not in HARMLESS and threading.get_ident() not in self._others:
            self.seen.setdefault(event, arguments)

    def begin(self) -> None:
        # Threads that clients of other tests have left behind go on with what they were at.
        self._others = {thread.ident or 0 for thread in threading.enumerate()} - {threading.get_ident()}
        self.seen, self._awake = {}, True

    def end(self) -> dict[str, object]:
        self._awake = False
        return self.seen


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def worker(bundle: Path) -> MemoryWorker:
    """With a real model, so that scoring and the attribution of alerts run too."""
    return MemoryWorker(BatchSettings(), TorchScorer(verify(bundle, domain=DOMAIN), DOMAIN))


def test_no_message_opens_connects_imports_or_runs_anything(watch: Watch, worker: MemoryWorker) -> None:
    messages = hostile(7, corpus=40)
    # What is imported when it is first used is of the code's choosing, not of a message's.
    warm_up = worker.work_off(list(itertools.islice(messages, 1_000)))
    hostile_ones = list(itertools.islice(messages, 3_000))
    watch.begin()
    outcomes = worker.work_off(hostile_ones)
    seen = watch.end()
    assert seen == {}
    for told in (warm_up, outcomes):
        assert {"scored", "dead", "duplicate", "folded"} <= set(told)


def test_a_pickle_or_a_program_is_only_bytes(watch: Watch, worker: MemoryWorker, tmp_path: Path) -> None:
    target = tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return open, (str(target), "w")

    values = [pickle.dumps(Trap(), protocol=protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    values += [b"import os; os.system('id')", b"!!python/object/apply:os.system ['id']", f"@{target}".encode()]
    assert set(worker.work_off([Hostile("trap", False, value, NOW_MS) for value in values])) == {"dead"}
    assert not target.exists()


@pytest.mark.parametrize(
    ("act", "event"),
    [
        (lambda: Path("/dev/null").read_bytes(), "open"),
        (lambda: eval("1 + 1"), "exec"),
        (lambda: __import__("antigravity_that_is_not_there"), "import"),
        (lambda: __import__("socket").socket().close(), "socket.__new__"),
        (lambda: __import__("os").system("true"), "os.system"),
        (lambda: pickle.loads(pickle.dumps(int)), "pickle.find_class"),
    ],
)
def test_the_watch_can_see(watch: Watch, act: object, event: str) -> None:
    watch.begin()
    with contextlib.suppress(ImportError):
        act()  # type: ignore[operator]
    assert event in watch.end()
