"""Moments: RFC 3339 texts with a zone on the wire, int64 milliseconds since the epoch inside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

MOMENT_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
"""The form alone. What the calendar says of it (30 February, 24:00) is `moments_ms`'s to check."""

NO_MOMENT = np.iinfo(np.int64).min
"""In place of a time that is missing or that no calendar has."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

EARLIEST_MS = (datetime(1990, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND
END_MS = (datetime(2101, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND
"""The first millisecond after the year 2100. Outside [EARLIEST_MS, END_MS) a time is a mistake in units."""


def moments_ms(texts: Sequence[str | None]) -> NDArray[np.int64]:
    """Texts of `MOMENT_PATTERN` as milliseconds since the epoch, digits below cut off: (B,).

    NO_MOMENT where the text is None or names a moment that does not exist.
    """
    known = [text for text in texts if text is not None]
    # numpy parses UTC three times as fast as datetime does, but refuses zones and fails as a whole.
    if len(known) == len(texts) and {text[-1] for text in known} == {"Z"}:
        try:
            return np.array([text[:-1] for text in known], dtype="M8[ms]").astype(np.int64)
        except ValueError:
            pass
    return np.array([moment_ms(text) for text in texts], dtype=np.int64)


def moment_ms(text: str | None) -> int:
    """One text, as `moments_ms`."""
    if text is None:
        return NO_MOMENT
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND
    except (ValueError, OverflowError):
        return NO_MOMENT


def day_or_moment_ms(text: str) -> int:
    """As `moment_ms`; a date alone (2020-07-01) is its first moment in UTC."""
    return moment_ms(f"{text}T00:00:00Z" if len(text) == len("2020-07-01") else text)


def moment_text(moment_ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 text in UTC, always with three decimals."""
    moment = _EPOCH + timedelta(milliseconds=moment_ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
