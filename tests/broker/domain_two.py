"""The payments domain with one more window: another spec_id, and so another state."""

from __future__ import annotations

from dataclasses import replace

from stream.domains.payments import DOMAIN as PAYMENTS
from stream.features.spec import Entity

DOMAIN = replace(
    PAYMENTS,
    entities=tuple(
        Entity(entity.name, entity.field, ("1h", "24h", "7d")) if entity.name == "ip" else entity
        for entity in PAYMENTS.entities
    ),
)
