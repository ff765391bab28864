"""What will go wrong, and when: a pure function of the seed, to be printed, repeated, and cut short.

A plan is a list of strikes. A strike is one fault with its numbers; how it is done stands in faults.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

POINTS = (
    "turn:after_poll",
    "turn:after_fold",
    "turn:after_produce",
    "turn:inside_commit",
    "turn:after_commit",
    "flush:after_chunk",
    "flush:after_accounts",
    "flush:after_entities",
    "flush:after",
    "restore:after_claim",
    "restore:after_step",
)
"""The named points of a turn, of a flush and of a restore, at which a worker is killed or stopped."""

KILLS = ("kill", "kill_at")
"""kill: at a random moment. kill_at: at a named point."""

OTHERS = {
    "zombie": 0.03,
    "zombie_at": 0.04,
    "storm": 0.03,
    "broker_kill": 0.015,
    "broker_slow": 0.02,
    "disk_full": 0.004,
    "redis_old_snapshot": 0.02,
    "redis_flushall": 0.01,
    "redis_out": 0.004,
    "redis_hangs": 0.015,
    "redis_full": 0.015,
    "redis_promoted": 0.015,
    "offsets_back": 0.006,
}
"""Every other fault -> how many of it for one kill. `log_truncated` comes once, at the end."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault. `worker` chooses the victim; the other numbers mean what faults.py says for this fault."""

    number: int
    fault: str
    worker: int = 0
    point: str = ""
    hit: int = 1
    wait_s: float = 0.0
    delay_ms: float = 0.0
    same_id: bool = True
    settle: bool = True
    """Whether every partition must have gone on before the next strike."""

    def __str__(self) -> str:
        words = [f"{self.number:4d} {self.fault}", f"worker {self.worker}"]
        if self.point:
            words.append(f"at {self.point} hit {self.hit} +{self.delay_ms:.1f} ms")
        words += [f"{self.wait_s:.2f} s", "same id" if self.same_id else "new id"]
        return ", ".join(words + ([] if self.settle else ["goes on at once"]))


@dataclass(frozen=True, slots=True)
class Plan:
    """All strikes of a run, in order."""

    seed: int
    strikes: Sequence[Strike] = field(repr=False)

    @property
    def kills(self) -> int:
        return sum(strike.fault in KILLS for strike in self.strikes)


def plan(seed: int, kills: int, *, workers: int = 3, long_s: float = 30.0) -> Plan:
    """So many kills, half of them at named points, every point as often as the others; the other faults among them.

    Every kind of fault comes at least once. `long_s`: how long Redis is out when it is out for long.
    """
    draw = random.Random(f"soak {seed}")
    at_points = max(kills // 2, min(kills, len(POINTS)))
    points = [POINTS[number % len(POINTS)] for number in range(at_points)]
    faults = [("kill_at", point) for point in points] + [("kill", "")] * (kills - at_points)
    for name, share in OTHERS.items():
        faults += [(name, draw.choice(POINTS[:-1]) if name == "zombie_at" else "")] * max(1, round(share * kills))
    draw.shuffle(faults)
    # After it the log is no longer whole, and nothing that needs a rebuild may follow.
    faults.append(("log_truncated", ""))
    strikes = [_strike(draw, number, fault, point, workers, long_s) for number, (fault, point) in enumerate(faults)]
    return Plan(seed, strikes)


def _strike(draw: random.Random, number: int, fault: str, point: str, workers: int, long_s: float) -> Strike:
    waits = {
        "kill": draw.uniform(0.0, 0.8),
        "kill_at": draw.uniform(0.0, 0.4),
        "broker_slow": draw.uniform(0.5, 4.0),
        "broker_kill": draw.uniform(0.0, 2.0),
        "redis_out": long_s,
        "redis_hangs": draw.uniform(0.5, 8.0),
        "redis_full": draw.uniform(1.0, 6.0),
        "redis_old_snapshot": draw.uniform(0.2, 4.0),
        "redis_promoted": draw.uniform(0.2, 4.0),
        "zombie": draw.uniform(0.5, 3.0),
        "zombie_at": draw.uniform(0.5, 3.0),
        "storm": draw.uniform(0.2, 1.5),
    }
    return Strike(
        number=number,
        fault=fault,
        worker=draw.randrange(workers),
        point=point,
        hit=draw.choice((1, 1, 2, 3)),
        wait_s=waits.get(fault, 1.0),
        delay_ms=draw.choice((0.0, 0.0, draw.uniform(0.0, 8.0))),
        same_id=draw.random() < 0.75,
        settle=draw.random() < 0.5,
    )
