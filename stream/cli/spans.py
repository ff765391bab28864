"""Values that several commands read from their options."""

from __future__ import annotations

import enum


class Labels(enum.StrEnum):
    """Which verdicts become known."""

    NONE = "none"
    FRAUD = "fraud"
    ALL = "all"


def span_ms(text: str | None) -> int | None:
    """'7d' in milliseconds; None stays None. ConfigError."""
    from stream.features.spec import window_ms

    return window_ms(text) if text is not None else None
