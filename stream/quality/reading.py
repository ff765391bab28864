"""From records of the score and label topics to columns, and the references that bundles carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from pydantic_core import from_json

from stream.config import BatchSettings
from stream.errors import BundleRefused
from stream.events.decoder import Decoder
from stream.events.moments import NO_MOMENT, moments_ms
from stream.events.records import DECISIONS
from stream.features.columns import MoneyConverter, hash_ids
from stream.features.money import MAX_AMOUNT
from stream.features.spec import Domain
from stream.kafka.port import Record
from stream.quality.book import SALTS, LabelColumns, ScoreColumns
from stream.scoring.bundle import verify
from stream.scoring.reference import Reference

NO_MODEL = "none"
"""In place of a model's name: rules only."""

_NUMBER = (float, int)
_DECISION_CODES = {str(decision): place for place, decision in enumerate(DECISIONS)}


class RecordReader:
    """Decodes both kinds of records of one domain. Never raises for what a record holds."""

    def __init__(self, domain: Domain, money: MoneyConverter) -> None:
        self._domain, self._money = domain, money
        self._labels = Decoder(domain.label, BatchSettings(), time_field=domain.time_field)

    def scores(self, records: Sequence[Record], before_ms: int) -> tuple[ScoreColumns, list[ScoreColumns], int]:
        """The readable ones as columns, the challengers' scores in them by role, and how many could not be read.

        An event time at or after `before_ms` cannot be: one broken clock must not age all other events.
        """
        found = [content for content in map(self._score, records) if content is not None]
        domain = self._domain
        time_ms = moments_ms([content[domain.time_field] for content in found])
        possible = (time_ms != NO_MOMENT) & (time_ms < before_ms)
        if not possible.all():
            kept = np.flatnonzero(possible)
            found, time_ms = [found[i] for i in kept.tolist()], time_ms[kept]
        amounts = np.array([content.get(domain.amount_field) for content in found], dtype=np.float64)
        amounts[~((amounts >= 0) & (amounts <= MAX_AMOUNT))] = np.nan
        minor = self._money.to_minor(np.nan_to_num(amounts), [str(c.get(domain.currency_field)) for c in found])
        columns = ScoreColumns(
            identity=self._identity(found),
            time_ms=time_ms,
            amount_minor=np.where(np.isnan(amounts), -1, minor),
            **_verdicts(found),
            features=[content.get("features") for content in found],
        )
        return columns, self._shadows(found, columns), len(records) - len(columns)

    def _shadows(self, contents: Sequence[Mapping[str, Any]], scores: ScoreColumns) -> list[ScoreColumns]:
        by_role: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
        for place, content in enumerate(contents):
            for shadow in content.get("shadow") or ():
                if shadow["role"] in SALTS:
                    by_role.setdefault(shadow["role"], []).append((place, shadow))
        found = []
        for role, shadows in by_role.items():
            index = np.array([place for place, _ in shadows], dtype=np.int64)
            found.append(
                ScoreColumns(
                    identity=scores.identity[index] ^ SALTS[role],
                    time_ms=scores.time_ms[index],
                    amount_minor=scores.amount_minor[index],
                    **_verdicts([shadow for _, shadow in shadows]),
                    features=[scores.features[place] for place, _ in shadows],
                )
            )
        return found

    def labels(self, records: Sequence[Record]) -> tuple[LabelColumns, int]:
        """Likewise, by the rules of the engine's own decoder."""
        decoded = self._labels.decode(records)
        columns = LabelColumns(
            identity=self._identity(decoded.events),
            time_ms=decoded.time_ms,
            known_ms=decoded.times_ms[self._domain.label_time_field],
            fraud=np.array([label["fraud"] for label in decoded.events], dtype=np.bool_),
        )
        return columns, len(decoded.rejects)

    def _identity(self, contents: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """A hash of account and event id: an id names one event of an account."""
        domain = self._domain
        return hash_ids([f"{content[domain.account_field]}\0{content[domain.event_id_field]}" for content in contents])

    def _score(self, record: Record) -> dict[str, Any] | None:
        """A score record's content; None when it is not one."""
        domain = self._domain
        try:
            content = from_json(record.value or b"", allow_inf_nan=False)
            texts = (content[name] for name in (domain.event_id_field, domain.account_field, domain.time_field))
            features, shadows = content.get("features") or {}, content.get("shadow") or ()
            good = (
                all(isinstance(text, str) for text in texts)
                and _is_verdict(content)
                and all(_is_verdict(shadow) and isinstance(shadow["role"], str) for shadow in shadows)
                and all(value is None or isinstance(value, _NUMBER) for value in features.values())
                and isinstance(content.get(domain.amount_field, 0.0), float | int | None)
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return content if good else None


def _is_verdict(content: Mapping[str, Any]) -> bool:
    """Whether decision, probability and model are such. KeyError, TypeError when it is no object that has them."""
    probability, model = content["probability"], content["model"]
    return (
        content["decision"] in _DECISION_CODES
        and (probability is None or isinstance(probability, _NUMBER))
        and (model is None or isinstance(model, str))
    )


def _verdicts(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "probability": np.array([content["probability"] for content in contents], dtype=np.float64),
        "decision": np.array([_DECISION_CODES[content["decision"]] for content in contents], dtype=np.int64),
        "models": [content["model"] or NO_MODEL for content in contents],
    }


class References:
    """The references of the bundles in the folders given, by model."""

    def __init__(self, folders: Sequence[Path], signature_key: bytes | None = None) -> None:
        self._folders, self._signature_key = tuple(folders), signature_key
        self._log = structlog.get_logger("riskstream.quality")

    def read(self) -> dict[str, Reference]:
        """What the folders hold now: a deployed bundle may have taken the place of another. Blocks for the reads.

        Hashes are checked; nothing in a bundle is run. One that does not verify is logged and left out.
        """
        found = {}
        for folder in self._folders:
            try:
                bundle = verify(folder, signature_key=self._signature_key, golden=False)
            except BundleRefused as error:
                self._log.warning("no reference for drift", bundle=str(folder), error=str(error))
                continue
            if bundle.reference is not None:
                found[bundle.manifest.label] = bundle.reference
        return found
