"""How far a long command is: one line that rewrites itself on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_TERMINAL_EVERY_S, _PLAIN_EVERY_S = 0.2, 10.0


class Steps:
    """Progress on stderr; a context manager that leaves a clean line behind."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self._terminal else _PLAIN_EVERY_S)
        self._dirty = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._dirty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, what: str, done: int, total: int | None, more: str = "") -> None:
        """Tells, unless it told a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_TERMINAL_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        text = f"{what}: {done:,}" + (f" of {total:,} ({done / total:.0%})" if total else "") + more
        if self._terminal:
            self._dirty = True
            bar = _bar(done / total) + " " if total else ""
            print(f"\r\033[K{bar}{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _bar(share: float, width: int = 24) -> str:
    full = min(width, int(share * width))
    return "━" * full + "╌" * (width - full)
