"""The payments domain with one more window of one entity: another spec_id, another layout, and so another state."""

from __future__ import annotations

from dataclasses import replace

from stream.domains.payments import DOMAIN as PAYMENTS

_WINDOWS = ("1h", "24h", "7d", "30d")
_PLACE, _MORE = next(
    (place, window)
    for place, entity in enumerate(PAYMENTS.entities)
    for window in _WINDOWS
    if window not in entity.windows
)

DOMAIN = replace(
    PAYMENTS,
    entities=tuple(
        replace(entity, windows=tuple(sorted((*entity.windows, _MORE), key=_WINDOWS.index)))
        if place == _PLACE
        else entity
        for place, entity in enumerate(PAYMENTS.entities)
    ),
)
