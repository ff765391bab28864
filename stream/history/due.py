"""When labels become known within a batch of a history, and how long each may wait without a difference.

A label changes the rows of its account and of its entities, and nothing else. Until an event needs one of these it may
wait, so a batch is cut only where one is needed, not wherever one is due.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import I64

NOWHERE = -1
"""The code of a value that no event of the batch has, and of a missing one."""


class Places:
    """Where in a batch each value of one field stands. `code` is (B,), NOWHERE where the value is missing."""

    def __init__(self, values: Sequence[str | None]) -> None:
        codes: dict[str | None, int] = {}
        self.code: I64 = np.fromiter((codes.setdefault(value, len(codes)) for value in values), np.int64, len(values))
        self.code[self.code == codes.pop(None, NOWHERE)] = NOWHERE
        self._codes, self._size = codes, len(values) + 1
        self._sorted = np.sort(self.code * self._size + np.arange(len(values)))

    def codes_of(self, values: Sequence[str | None]) -> list[int]:
        """The codes of other values."""
        return [self._codes.get(value, NOWHERE) for value in values]

    def first(self, code: I64, at: I64) -> I64:
        """(L,): the first place not before `at` that has the code; B where there is none."""
        found = np.searchsorted(self._sorted, code * self._size + at)
        place = np.append(self._sorted, np.iinfo(np.int64).max)[found]
        here = (code != NOWHERE) & (place // self._size == code)
        return np.where(here, place % self._size, self._size - 1)


class DueLabels:
    """L labels in the order in which they become known. Positions are of the batch's B events; B is after them all."""

    def __init__(self, at: I64, needed: I64, partition: NDArray[np.int64]) -> None:
        """`at`: before which event each is due; `needed`: the first event from there on that reads one of its rows."""
        order = np.argsort(at, kind="stable")
        self.at, self.needed, self.partition = at[order], needed[order], partition[order]

    def cuts(self) -> list[int]:
        """The fewest positions such that, all that is due folded at each, no label is missed where it is needed."""
        found: list[int] = []
        limit = None
        for at, needed in zip(self.at.tolist(), self.needed.tolist(), strict=True):
            if limit is not None and at > limit:
                found.append(limit)
                limit = None
            limit = needed if limit is None else min(limit, needed)
        return found if limit is None else [*found, limit]
