"""One soak from start to verdict: servers, workers, traffic, the plan's strikes, the last flush, the judges."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.broker.harness import Message
from tests.checker import checks
from tests.crash.traffic import Item
from tests.soak import faults
from tests.soak.arena import PARTITIONS, WORKERS, Arena, Seen
from tests.soak.schedule import Plan, Strike
from tests.soak.traffic import Publisher, SoakTraffic, Variant
from tests.soak.workers import Zygote

JUDGES = 2
_JUDGE_S = 3_600.0
Tell = Callable[[Seen, Strike | None, str], None]
"""Progress: what was seen so far, the strike that is under way, and a word."""


@dataclass
class Outcome:
    """What the run was, and what is wrong with it."""

    plan: Plan
    seen: Seen
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    struck: list[Strike] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def counts(self) -> Counter[str]:
        """Complaints of the judges by kind; of rows ahead, those seen on the way too."""
        found: Counter[str] = Counter(dict.fromkeys(checks.KINDS, 0))
        for verdict in self.verdicts:
            found.update(verdict["counts"])
        found["ahead"] += sum(line.startswith("ahead: ") for line in self.seen.complaints)
        return found

    @property
    def complaints(self) -> list[str]:
        return self.seen.complaints + [line for verdict in self.verdicts for line in verdict["complaints"]]

    def takeovers_s(self) -> list[float]:
        """From each kill to the next score of each partition that the dead worker held.

        Kills while a server was away, or where the worker held nothing, are left out.
        """
        found = []
        for number, kill in enumerate(self.seen.kills):
            waits = [v["scored_again_ms"][number] for v in self.verdicts if v["partition"] in kill.partitions]
            times = [wait for wait in waits if wait is not None]
            ends = kill.at_ms + max(times, default=0.0)
            if times and not any(start < ends and kill.at_ms < end for start, end in self.seen.outages):
                found += [wait / 1000 for wait in times]
        return sorted(found)

    def summary(self) -> dict[str, Any]:
        """The last line of `make soak`."""
        counts, times = self.counts, self.takeovers_s()
        return {
            "kills": len(self.seen.kills),
            "faults": dict(sorted(self.seen.faults.items())),
            "points": dict(sorted(self.seen.points.items())),
            "events": sum(v["events"] for v in self.verdicts),
            "scored": sum(v["scored"] for v in self.verdicts),
            "compared_whole": sum(v["compared"] for v in self.verdicts),
            **{kind: counts[kind] for kind in ("lost", "twice", "different", "rows_different")},
            "wrong_order": counts["order"],
            "identity_broken": counts["identity"],
            "rows_ahead": counts["ahead"],
            "rows": sum(v["rows"] for v in self.verdicts),
            "fenced": self.seen.fenced,
            "other_complaints": sum(not line.startswith("ahead: ") for line in self.seen.complaints),
            "takeover_s": {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99), "max": quantile(times, 1.0)},
            "seconds": round(self.seconds, 1),
        }


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Of a sorted sample; None of an empty one."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def soak(
    plan: Plan,
    folder: Path,
    zygote: Zygote,
    bundle: Path | None,
    *,
    variant: Variant = "apart",
    rate: float,
    client: str = "kafka-python",
    seconds: float | None = None,
    events: int = 200_000,
    tell: Tell = lambda *_: None,
) -> Outcome:
    """Runs the plan until its end or until so many seconds have gone; then judges. Blocks.

    `client`: the workers' kafka.client. `events`: about how many there will be; their times are spread over two months.
    """
    began = time.monotonic()
    settings = {"kafka__client": client} | ({"scoring__bundle": str(bundle)} if bundle is not None else {})
    with Arena(folder, zygote, **settings) as arena:
        outcome = Outcome(plan, arena.seen)
        arena.on_step = lambda: tell(arena.seen, outcome.struck[-1] if outcome.struck else None, "")
        arena.start_workers(WORKERS)
        traffic = SoakTraffic(plan.seed, PARTITIONS, variant, now_ms=int(time.time() * 1000), events=events)
        names = {"transactions": arena.deployment.topics.transactions, "labels": arena.deployment.topics.labels}
        arena.publisher = Publisher(
            arena.deployment.client, arena.kafka.bootstrap, traffic, names, PARTITIONS, rate
        ).start()
        arena.wait_progress()
        for strike in plan.strikes:
            if seconds is not None and time.monotonic() - began > seconds:
                break
            outcome.struck.append(strike)
            tell(arena.seen, strike, "")
            faults.strike(arena, strike)
            if arena.seen.complaints:
                break
        tell(arena.seen, None, "the traffic ends, the workers finish")
        finish(arena, traffic)
        outcome.verdicts = judge(arena, tell)
        if outcome.complaints:
            arena.kafka.keep_logs()
    outcome.seconds = time.monotonic() - began
    return outcome


def finish(arena: Arena, traffic: SoakTraffic) -> None:
    """The traffic ends with a plain payment in each partition; when all is committed the workers flush and leave."""
    assert arena.publisher is not None
    arena.publisher.stop()
    last: list[Item] = [traffic.event(account) for account in traffic.accounts[:PARTITIONS]]
    arena.deployment.publish(Message(item.value, item.key) for item in last)
    if arena.wait_done():
        arena.stop_workers()


def judge(arena: Arena, tell: Tell) -> list[dict[str, Any]]:
    """One judge for each partition, two at a time."""
    given = {
        "settings": arena.deployment.overrides(),
        "bootstrap": arena.kafka.bootstrap,
        "redis": arena.redis.url,
        "folder": str(arena.folder),
        "partitions": PARTITIONS,
        "kills": [(kill.at_ms, kill.partitions) for kill in arena.seen.kills],
    }
    waiting = list(range(PARTITIONS))
    running: dict[int, Any] = {}
    verdicts = []
    while waiting or running:
        while waiting and len(running) < JUDGES:
            number = waiting.pop(0)
            files = {name: str(arena.folder / f"judge-{number}.{name}") for name in ("log", "out")}
            running[number] = arena.zygote.fork("judge", partition=number, **given, **files)
        for number, child in list(running.items()):
            if child.wait(0.2) is None:
                continue
            del running[number]
            out = arena.folder / f"judge-{number}.out"
            assert child.code == 0, (
                f"the judge of partition {number}: {(arena.folder / f'judge-{number}.log').read_text()}"
            )
            verdicts.append(json.loads(out.read_text()))
            tell(arena.seen, None, f"judged partition {number}")
    return verdicts
