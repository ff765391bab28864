"""The records that the engine writes: risk scores, alerts, dead letters. The models are the contract.

The hot path builds plain dicts of the same shape and encodes those; a test holds the two together.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_json

from stream.events.moments import moment_text
from stream.events.rejects import Reject, RejectCode, Stage

MAX_SCORE = 999

MomentOut = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
BASE64: dict[str, JsonValue] = {"contentEncoding": "base64"}
Probability = Annotated[float, Field(ge=0, le=1)]


class Decision(StrEnum):
    """What is to happen with an event, from harmless to severe."""

    APPROVE = "approve"
    REVIEW = "review"
    DECLINE = "decline"


DECISIONS = tuple(Decision)
"""A decision's code in arrays is its place here; a greater code is more severe."""


class Flag(StrEnum):
    """What a reader must know about how a score came about. A score without flags is unreserved."""

    LATE = "late"
    """The event is older than the account's newest."""
    SATURATED = "saturated"
    """More than 64 events of the account in one window: beyond 64 its windows are of tiles."""
    NO_RATE = "no_rate"
    """No exchange rate for the currency: the amount is missing to the model."""
    COLD = "cold"
    """The state lacks history (a cold start, or a log that no longer held it) and is younger than the horizon."""
    DEGRADED = "degraded"
    """The account's history could not be read: scored without it."""
    RULES_ONLY = "rules_only"
    """No model took part: probability and score are null."""
    SHED_REASONS = "shed_reasons"
    """Under pressure: the alert's reason codes were left out."""
    SHED_CHALLENGERS = "shed_challengers"
    """Under pressure: the challengers were not asked."""
    SHED_MODEL = "shed_model"
    """Under pressure: the model was not asked; always beside rules_only."""


class Record(BaseModel):
    """Frozen; readers must ignore fields that they don't know, so that fields can be added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Origin(Record):
    """Where the input message lies: a key that identifies every output."""

    topic: str = Field(description="input topic")
    partition: int = Field(ge=0, description="its partition")
    offset: int = Field(ge=0, description="its offset")


class RuleHit(Record):
    """A list or a rule of the policy that applied."""

    name: str = Field(description="the rule's name; lists are called block:NAME and allow:NAME")
    decision: Decision = Field(description="what it asks for")
    reason: str = Field(description="the policy's words for it")


class Reason(Record):
    """One factor that raised the score."""

    code: str = Field(description="stable code of the factor, such as AMOUNT_HIGH")
    group: str = Field(description="the group of features that it speaks of")
    contribution: float = Field(description="what the group added to the score's log-odds")
    text: str = Field(description="the factor in words, with its values")
    values: dict[str, float] = Field(description="the values in the text, by feature")


class ScoredEvent(Record):
    """What a risk score and an alert have in common."""

    event_id: str = Field(description="identity of the event")
    account_id: str = Field(description="the account")
    timestamp: MomentOut = Field(description="when the event happened, as sent")
    amount: float | None = Field(None, description="as sent, in major units")
    currency: str | None = Field(None, description="ISO 4217")
    merchant_id: str | None = Field(None, description="the entities of the event, as far as it named them")
    terminal_id: str | None = None
    device_id: str | None = None
    ip: str | None = None
    passthrough: dict[str, JsonValue] = Field(description="fields of the event that its schema does not declare")
    origin: Origin = Field(description="where the event lies in Kafka")
    probability: Probability | None = Field(description="calibrated probability of fraud; null without a model")
    score: Annotated[int, Field(ge=0, le=MAX_SCORE)] | None = Field(description="0 to 999, rising with the probability")
    band: str | None = Field(description="the policy's name for the score's range")
    decision: Decision = Field(description="what the policy says is to happen")
    rules: list[RuleHit] = Field(description="lists and rules that applied, in the policy's order")
    model: str | None = Field(description="name@version of the model; null without one")
    policy_version: str = Field(description="version of the decision policy")
    flags: list[Flag] = Field(description="reservations about this score")
    scored_at: MomentOut = Field(description="when it was scored, UTC")


class Shadow(Record):
    """What a challenger says of the same event. It decides nothing."""

    role: str = Field(description="its place: challenger-1 to challenger-3")
    model: str = Field(description="name@version of the challenger")
    probability: Probability = Field(description="its calibrated probability of fraud")
    score: Annotated[int, Field(ge=0, le=MAX_SCORE)] = Field(description="0 to 999 on its own thresholds")
    decision: Decision = Field(description="what the policy would have said, had it been the champion")


class RiskScore(ScoredEvent):
    """One per event: a self-contained record of the decision, from which it can be replayed."""

    labels_offset: Annotated[int, Field(ge=0)] | None = Field(
        description="first offset of the labels topic not yet known when this was scored"
    )
    entity_view_age_ms: Annotated[int, Field(ge=0)] | None = Field(
        description="age of the other partitions' entity values; null when none took part"
    )
    components: dict[str, float | None] = Field(description="the outputs of the model's parts, by name")
    spec_id: str = Field(description="identity of the features' definition")
    rates_version: str | None = Field(description="version of the exchange rates; null when there are none")
    features: dict[str, float | None] | None = Field(
        None, description="what the model saw, by column, null where missing; only in records chosen by the settings"
    )
    shadow: list[Shadow] | None = Field(None, description="the challengers' verdicts; absent without challengers")


class Alert(ScoredEvent):
    """One per event whose decision is not to approve."""

    reasons: list[Reason] = Field(description="what raised the score most; empty when shed or without a model")


class HeaderRecord(Record):
    """One Kafka header."""

    name: str
    value: str | None = Field(description="base64 of the bytes", json_schema_extra=BASE64)


class DeadLetterOrigin(Origin):
    timestamp_ms: int = Field(description="the message's Kafka timestamp, milliseconds since the epoch; -1 if none")


class DeadLetter(Record):
    """A message that could not be scored, whole, and why."""

    origin: DeadLetterOrigin
    stage: Stage = Field(description="where it failed")
    code: RejectCode = Field(description="why, from a closed list")
    field: str | None = Field(description="the declared field that is wrong; null when it is the message as a whole")
    reason: str = Field(description="why, for a person: the field, what is wrong, what is expected")
    key: str | None = Field(description="base64 of the key's bytes", json_schema_extra=BASE64)
    value: str | None = Field(description="base64 of the value's bytes", json_schema_extra=BASE64)
    headers: list[HeaderRecord]
    engine_version: str = Field(description="version of the code that refused it")
    failed_at: MomentOut


class SourceRecord(Protocol):
    """A consumed record, as far as a dead letter repeats it."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class EventSplitter:
    """Divides an event into the identity that every output repeats and what merely passes through."""

    def __init__(self, declared: Collection[str], identity: Sequence[str]) -> None:
        """`declared`: the fields of the event's model; `identity`: those that the outputs carry."""
        self._declared = frozenset(declared)
        self._identity = tuple(identity)

    def split(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(identity, passthrough); fields that the event lacks are absent."""
        identity = {name: event[name] for name in self._identity if name in event}
        if self._declared.issuperset(event):
            return identity, {}
        return identity, {name: event[name] for name in event if name not in self._declared}


def dead_letter(record: SourceRecord, reject: Reject, *, engine_version: str, failed_ms: int) -> dict[str, Any]:
    """The dead letter of a record, as a dict of the shape of `DeadLetter`."""
    return {
        "origin": {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp,
        },
        "stage": reject.stage,
        "code": reject.code,
        "field": reject.field,
        "reason": reject.reason,
        "key": _base64(record.key),
        "value": _base64(record.value),
        "headers": [{"name": name, "value": _base64(value)} for name, value in record.headers],
        "engine_version": engine_version,
        "failed_at": moment_text(failed_ms),
    }


def encode(records: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Records as JSON texts in UTF-8. NaN and infinity become null."""
    try:
        return [orjson.dumps(record) for record in records]
    except TypeError:
        # orjson has no integers of more than 64 bits; what merely passes through an event may be one.
        return [to_json(record, inf_nan_mode="null") for record in records]


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
