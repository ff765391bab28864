"""The wire contract: the committed files are current, and what is really encoded validates against them."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from stream import schemas
from stream.config import BatchSettings, TopicSettings
from stream.domains.payments_schema import Label, Transaction
from stream.events.decoder import Decoder
from stream.events.records import (
    DECISIONS,
    Alert,
    DeadLetter,
    Decision,
    EventSplitter,
    Flag,
    Reason,
    RiskScore,
    RuleHit,
    dead_letter,
    encode,
)
from tests.unit.test_decode import BAD, EVENT, LABEL, packed

CHANNELS = {channel.name: channel for channel in schemas.channels(TopicSettings())}
IDENTITY = (
    "event_id",
    "account_id",
    "timestamp",
    "amount",
    "currency",
    "merchant_id",
    "terminal_id",
    "device_id",
    "ip",
)
SPLITTER = EventSplitter(Transaction.model_fields, IDENTITY)
FAILED_MS = 1_767_225_600_007


@dataclass(frozen=True)
class Consumed:
    value: bytes | None
    key: bytes | None = b"\xff\x00"
    topic: str = "transactions"
    partition: int = 3
    offset: int = 41
    timestamp: int = 1_767_225_600_000
    headers: Sequence[tuple[str, bytes]] = field(default=(("traceparent", b"00-ab"), ("x", b"\xfe")))


def validator(name: str) -> Draft202012Validator:
    content = (schemas.DOCS / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(content), format_checker=Draft202012Validator.FORMAT_CHECKER)


def scored(event: dict[str, Any], **changes: Any) -> dict[str, Any]:
    identity, passthrough = SPLITTER.split(event)
    common = {
        "passthrough": passthrough,
        "origin": {"topic": "transactions", "partition": 0, "offset": 17},
        "probability": 0.8125,
        "score": 871,
        "band": "severe",
        "decision": Decision.DECLINE,
        "rules": [RuleHit(name="burst", decision=Decision.REVIEW, reason="many")],
        "model": "fraud@1",
        "policy_version": "example-1",
        "flags": [Flag.LATE, Flag.NO_RATE],
        "scored_at": "2026-01-01T00:00:00.007Z",
    }
    return identity | common | changes


SCORE_ONLY = {
    "labels_offset": 5,
    "entity_view_age_ms": None,
    "components": {"sequence": 0.75, "aggregate": math.nan},
    "spec_id": "0123456789abcdef",
    "rates_version": "illustrative-1",
    "features": {"count_10min": 9.0, "distance_km": math.nan},
}
REASON = Reason(code="BURST", group="velocity", contribution=2.5, text="9 payments", values={"count_10min": 9.0})


def test_the_committed_files_are_current() -> None:
    assert schemas.outdated(schemas.DOCS) == []
    assert schemas.main(["--check"]) == 0


def test_files_that_are_not_current_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schemas.main(["--check", "--docs", str(tmp_path)]) == 1
    assert schemas.main(["--docs", str(tmp_path)]) == 0
    assert schemas.main(["--check", "--docs", str(tmp_path)]) == 0
    (tmp_path / "schemas" / "old.schema.json").write_text("{}", encoding="utf-8")
    (tmp_path / "asyncapi.yaml").write_text("asyncapi: 3.0.0\n", encoding="utf-8")
    capsys.readouterr()
    assert schemas.main(["--check", "--docs", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert re.findall(r"^(\S+): not current; run `python -m stream.schemas`$", said, re.MULTILINE) == [
        "asyncapi.yaml",
        "schemas/old.schema.json",
    ]


@pytest.mark.parametrize("name", CHANNELS)
def test_the_schemas_are_json_schema_2020_12(name: str) -> None:
    schema = validator(name).schema
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == schemas.DIALECT
    assert schema["$id"] == f"{name}.schema.json"
    assert schema["type"] == "object"
    undescribed = [
        key for key, value in schema["properties"].items() if not (value.keys() & {"description", "$ref", "items"})
    ]
    assert set(undescribed) <= {"terminal_id", "device_id", "ip", "failed_at"}


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in references(value)]
    return [found for value in part for found in references(value)] if isinstance(part, list) else []


def test_the_asyncapi_document_hangs_together() -> None:
    document = yaml.safe_load((schemas.DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
    assert document["asyncapi"] == "3.0.0"
    topics = TopicSettings()
    assert {channel["address"] for channel in document["channels"].values()} == set(topics.model_dump().values())
    actions = {name: operation["action"] for name, operation in document["operations"].items()}
    assert sorted(actions.values()) == ["receive", "receive", "receive", "send", "send", "send"]
    found = references(document)
    assert len(found) == 6 * 4
    for reference in found:
        if reference.startswith("#/"):
            target = document
            for step in reference.removeprefix("#/").split("/"):
                target = target[step]
        else:
            assert (schemas.DOCS / reference).is_file()


def test_topic_names_follow_the_settings() -> None:
    document = schemas.asyncapi(TopicSettings(transactions="payments-in"))
    assert document["channels"]["transaction"]["address"] == "payments-in"


@pytest.mark.parametrize(
    "record",
    [
        scored(EVENT | {"extra": {"a": [1, "ü"]}}) | SCORE_ONLY,
        scored({key: EVENT[key] for key in ("event_id", "account_id", "timestamp")}) | SCORE_ONLY | {"features": None},
        scored(EVENT, probability=math.nan, score=None, band=None, model=None, decision="approve", rules=[])
        | SCORE_ONLY | {"components": {}, "labels_offset": None, "rates_version": None, "entity_view_age_ms": 250},
    ],
)  # fmt: skip
def test_encoded_scores_are_valid(record: dict[str, Any]) -> None:
    (encoded,) = encode([record])
    decoded = json.loads(encoded, parse_constant=pytest.fail)
    validator("risk-score").validate(decoded)
    model = RiskScore.model_validate_json(encoded)
    assert model.event_id == EVENT["event_id"]
    assert decoded["passthrough"] == {
        key: value for key, value in {"extra": {"a": [1, "ü"]}}.items() if "extra" in str(record)
    }


def test_encoded_alerts_are_valid() -> None:
    records = [scored(EVENT, reasons=[REASON]), scored(EVENT, reasons=[], event_id="evt-2")]
    for record, encoded in zip(records, encode(records), strict=True):
        validator("alert").validate(json.loads(encoded))
        assert Alert.model_validate_json(encoded).event_id == record["event_id"]
    assert Alert.model_validate_json(encode(records)[0]).reasons == [REASON]


@pytest.mark.parametrize("name", BAD)
def test_dead_letters_are_valid_and_carry_the_message_whole(name: str) -> None:
    record = Consumed(BAD[name][0])
    (reject,) = Decoder(Transaction, BatchSettings()).decode([record]).rejects
    (encoded,) = encode([dead_letter(record, reject, engine_version="0.1.0", failed_ms=FAILED_MS)])
    decoded = json.loads(encoded)
    validator("dead-letter").validate(decoded)
    model = DeadLetter.model_validate_json(encoded)
    value = None if model.value is None else base64.b64decode(model.value, validate=True)
    assert value == record.value
    assert base64.b64decode(model.key or "") == record.key
    assert [(header.name, base64.b64decode(header.value or "")) for header in model.headers] == list(record.headers)
    assert model.origin.model_dump() == {
        "topic": "transactions", "partition": 3, "offset": 41, "timestamp_ms": record.timestamp,
    }  # fmt: skip
    assert (model.stage, model.code, model.field, model.reason) == (
        reject.stage,
        reject.code,
        reject.field,
        reject.reason,
    )
    assert model.failed_at == "2026-01-01T00:00:00.007Z"


@pytest.mark.parametrize(("name", "model", "example"), [("transaction", Transaction, EVENT), ("label", Label, LABEL)])
def test_the_input_schemas_accept_what_the_engine_accepts(
    name: str, model: type[BaseModel], example: dict[str, Any]
) -> None:
    check = validator(name)
    decoder = Decoder(model, BatchSettings())
    changes: list[dict[str, Any]] = [
        {}, {"amount": -1}, {"amount": "1"}, {"currency": "EUX"}, {"account_id": ""}, {"account_id": "x" * 129},
        {"account_id": "a\x7f"}, {"timestamp": "2025-12-31T23:59:58"}, {"timestamp": 1}, {"merchant_id": None},
        {"device_id": None}, {"ip": "::1"}, {"ip": "1.2.3"}, {"unknown": [1]}, {"amount": True}, {"mcc": "5411"},
    ]  # fmt: skip
    outcomes = []
    for change in changes:
        sent = example | change
        accepted = bool(decoder.decode([Consumed(json.dumps(sent).encode())]).events)
        assert check.is_valid(sent) == accepted, change
        outcomes.append(accepted)
    assert outcomes.count(True) == 5


@pytest.mark.parametrize(
    "name",
    [name for name, case in BAD.items() if case[2] in ("wrong_type", "out_of_range", "missing_field", "unknown_code")],
)
def test_the_transaction_schema_refuses_what_the_engine_refuses(name: str) -> None:
    assert not validator("transaction").is_valid(json.loads(BAD[name][0] or b"null"))


def test_severity_follows_the_order_of_decisions() -> None:
    assert [decision.value for decision in DECISIONS] == ["approve", "review", "decline"]


def test_events_are_split_into_identity_and_passthrough() -> None:
    event = json.loads(packed(zz=1, attributes={"a": 1}))
    identity, passthrough = SPLITTER.split(event)
    assert list(identity) == list(IDENTITY)
    assert passthrough == {"zz": 1}
    assert SPLITTER.split({"event_id": "e"}) == ({"event_id": "e"}, {})
