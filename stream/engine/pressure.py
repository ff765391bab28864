"""What a worker leaves out when it is slower than its input: the ladder of shedding.

Step by step: reason codes, then challengers, then the model (rules only, flagged). Features are folded at
every step, so rows are the same whatever was shed. The ladder sees the clock through its arguments only.
"""

from __future__ import annotations

from enum import IntEnum

STEP_MS = 1_000
"""Time over which it is judged whether a step is enough: one step up or down in so long, at most."""
_STILL_MS = 5_000
"""A longer pause between two turns is no matter of speed: an outage, or no events."""


class Shed(IntEnum):
    """What is left out; each step includes those before it."""

    NOTHING = 0
    REASONS = 1
    CHALLENGERS = 2
    MODEL = 3

    @property
    def word(self) -> str:
        """As settings and metrics call it."""
        return self.name.lower()


class Ladder:
    """Up one step while the events are older than the deadline and do not get younger; down one step while they are
    younger than half of it.

    So a backlog after an outage, which shrinks by itself, sheds nothing, and a step is kept until it has paid off.
    """

    def __init__(self, deadline_ms: int, deepest: Shed) -> None:
        """`deadline_ms`: how old an event may be when its turn begins; 0: nothing is ever shed."""
        self._deadline_ms, self._deepest = deadline_ms, deepest
        self._step = Shed.NOTHING
        self._finished_ms: int | None = None
        self._since_ms = self._age_then_ms = 0

    def observe(self, now_ms: int, age_ms: int) -> Shed:
        """What to leave out in the turn that begins now with an event this old. Once per turn."""
        if self._finished_ms is None or now_ms - self._finished_ms > _STILL_MS:
            # It stood still (an outage, no events): what the age says now is not the work's fault.
            self._begin_span(now_ms, age_ms)
        elif now_ms - self._since_ms >= STEP_MS:
            self._step = self._judged(age_ms)
            self._begin_span(now_ms, age_ms)
        return self._step

    def finished(self, now_ms: int) -> None:
        """The turn has committed. However long it took, that was work."""
        self._finished_ms = now_ms

    def _judged(self, age_ms: int) -> Shed:
        if age_ms <= self._deadline_ms // 2:
            return Shed(max(self._step - 1, Shed.NOTHING))
        if self._deadline_ms and age_ms > self._deadline_ms and age_ms >= self._age_then_ms:
            return min(Shed(min(self._step + 1, Shed.MODEL)), self._deepest)
        return self._step

    def _begin_span(self, now_ms: int, age_ms: int) -> None:
        self._since_ms, self._age_then_ms = now_ms, age_ms
