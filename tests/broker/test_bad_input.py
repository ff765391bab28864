"""Bad messages among good ones: each becomes a dead letter that holds it whole, and stops nothing."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from typing import Any, NamedTuple

import pytest

from stream.events.moments import moment_text
from stream.topics import create_topics, plan_topics
from tests.broker.conftest import Deploy
from tests.broker.harness import Message, Output, label_of, message_of, messages_of, payments

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

GOOD = next(payments(1, seed=3))


class Bad(NamedTuple):
    """A message that cannot be scored, and what its dead letter must say. `field` None: the whole message."""

    value: bytes | None
    code: str
    field: str | None
    stage: str = "validate"


def event(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name != field}).encode()


def with_text(field: str, text: str) -> bytes:
    """The event with `field` set to a text that json.dumps would not write."""
    return event(**{field: "@"}).replace(b'"@"', text.encode())


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


BAD = {
    "not JSON": Bad(b"amount=12.50", "not_json", None, "decode"),
    "cut off": Bad(event()[:-20], "not_json", None, "decode"),
    "empty": Bad(b"", "not_json", None, "decode"),
    "not UTF-8": Bad(event()[:-1] + b',"note":"\xff\xfe"}', "not_utf8", None, "decode"),
    "a list": Bad(b"[1, 2, 3]", "not_an_object", None, "decode"),
    "a number": Bad(b"42", "not_an_object", None, "decode"),
    "another object": Bad(b'{"hello": "world"}', "missing_field", "event_id"),
    "missing account id": Bad(without("account_id"), "missing_field", "account_id"),
    "empty account id": Bad(event(account_id=""), "bad_text", "account_id"),
    "null account id": Bad(event(account_id=None), "wrong_type", "account_id"),
    "missing amount": Bad(without("amount"), "missing_field", "amount"),
    "amount as text": Bad(event(amount="12.50"), "wrong_type", "amount"),
    "account id as number": Bad(event(account_id=17), "wrong_type", "account_id"),
    "amount as list": Bad(event(amount=[1]), "wrong_type", "amount"),
    "NaN": Bad(with_text("amount", "NaN"), "not_finite", "amount"),
    "infinity": Bad(with_text("amount", "-Infinity"), "not_finite", "amount"),
    "infinite by exponent": Bad(with_text("amount", "1e999"), "not_finite", "amount"),
    "negative amount": Bad(event(amount=-5.0), "out_of_range", "amount"),
    "absurd amount": Bad(event(amount=1e15), "out_of_range", "amount"),
    "unknown currency": Bad(event(currency="ZZZ"), "unknown_code", "currency"),
    "bad timestamp": Bad(event(timestamp="yesterday"), "bad_timestamp", "timestamp"),
    "no such day": Bad(event(timestamp="2026-02-30T10:00:00Z"), "bad_timestamp", "timestamp"),
    "timestamp as number": Bad(event(timestamp=1_767_225_600), "wrong_type", "timestamp"),
    "future timestamp": Bad(event(timestamp=moment_text(4_070_908_800_000)), "future_timestamp", "timestamp"),
    "an hour ahead": Bad(
        event(timestamp=moment_text(int(time.time() * 1000) + 3_600_000)), "future_timestamp", "timestamp"
    ),
    "null value": Bad(None, "null_value", None, "decode"),
    "900 KB": Bad(event(attributes={"note": "x" * 921_600}), "too_large", None, "decode"),
    "deep nesting": Bad(with_text("attributes", nested(30)), "too_deep", None, "decode"),
    "very deep nesting": Bad(with_text("attributes", nested(9_000)), "too_deep", None, "decode"),
    "deep lists": Bad(b"[" * 60_000, "too_deep", None, "decode"),
    "duplicate key": Bad(event()[:-1] + b',"amount": 1}', "duplicate_key", "amount", "decode"),
    "duplicate key inside": Bad(with_text("attributes", '{"a": 1, "a": 2}'), "duplicate_key", "attributes", "decode"),
}

BAD_LABELS = {
    "label: not JSON": Bad(b"chargeback", "not_json", None, "decode"),
    "label: without verdict": Bad(
        json.dumps({n: v for n, v in label_of(GOOD).items() if n != "fraud"}).encode(), "missing_field", "fraud"
    ),
    "label: null value": Bad(None, "null_value", None, "decode"),
}

HEADERS = [("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("own", b"\x00\xff")]


def check(letter: Output, key: bytes, bad: Bad, topic: str) -> None:
    content = letter.content
    assert (content["stage"], content["code"], content["field"]) == (bad.stage, bad.code, bad.field), content["reason"]
    assert content["reason"].startswith(f"{bad.field or 'value'}:")
    assert len(content["reason"]) < 400
    value = content["value"]
    assert (None if value is None else base64.b64decode(value, validate=True)) == bad.value
    assert base64.b64decode(content["key"], validate=True) == key
    assert [(h["name"], base64.b64decode(h["value"])) for h in content["headers"]] == HEADERS
    assert content["origin"]["topic"] == topic
    assert content["origin"]["timestamp_ms"] > 0
    assert content["engine_version"]
    assert letter.record.key == key
    assert dict(letter.record.headers) == dict(HEADERS[:1])


def test_every_kind_of_bad_message_among_good_ones(deploy: Deploy) -> None:
    deployment = deploy(partitions=2)
    good = list(payments(600, seed=4))
    kinds = list(BAD)
    messages: list[Message] = []
    for number, content in enumerate(good):
        messages.append(message_of(content, HEADERS[:1]))
        # Every kind comes three times, at different places among the good ones.
        if number % 6 == 5 and (turn := number // 6) < 3 * len(kinds):
            name = kinds[turn % len(kinds)]
            messages.append(Message(BAD[name].value, f"{name}/{turn}".encode(), HEADERS))
        if number in (250, 251, 400):
            messages.append(message_of(good[number - 1], HEADERS[:1]))  # again: a duplicate
    labels = [message_of(label_of(content)) for content in good[:50]]
    labels += [Message(bad.value, f"{name}/0".encode(), HEADERS) for name, bad in BAD_LABELS.items()]
    deployment.publish(messages)
    deployment.publish(labels, deployment.topics.labels)
    worker = deployment.worker()
    deployment.started(worker)
    deployment.wait_done()

    letters = {letter.record.key: letter for letter in deployment.dead_letters()}
    expected = {m.key: m for m in [*messages, *labels] if m.headers == HEADERS}
    assert set(letters) == set(expected)
    assert len(expected) == 3 * len(BAD) + len(BAD_LABELS)
    for key, letter in letters.items():
        assert key is not None
        name = key.decode().partition("/")[0]
        is_label = name in BAD_LABELS
        topic = deployment.topics.labels if is_label else deployment.topics.transactions
        check(letter, key, BAD_LABELS[name] if is_label else BAD[name], topic)
    scores = deployment.check_exactly_once(duplicates=3)
    assert sorted(score.content["event_id"] for score in scores) == sorted(e["event_id"] for e in good)
    # The origin of each dead letter is the very message that it holds.
    sent = {(r.topic, r.partition, r.offset): r for t in (deployment.topics.transactions, deployment.topics.labels)
            for r in deployment.read(t)}  # fmt: skip
    assert all(sent[letter.origin].key == key for key, letter in letters.items())

    assert worker.metric("riskstream_identity_gap_events") == 0
    assert worker.metric("riskstream_events_total", outcome="scored") == len(good)
    assert worker.metric("riskstream_events_total", outcome="duplicate") == 3
    assert worker.metric("riskstream_events_total", outcome="dead_letter") == 3 * len(BAD)
    assert worker.metric("riskstream_labels_total", outcome="folded") == 50
    assert worker.metric("riskstream_labels_total", outcome="dead_letter") == len(BAD_LABELS)
    assert worker.metric("riskstream_dead_letters_total", reason="too_large") == 3
    assert worker.terminate() == 0


def test_a_partition_of_nothing_but_bad_messages_is_worked_off(deploy: Deploy) -> None:
    deployment = deploy(partitions=1)
    worker = deployment.worker(batch__max_events=7)
    deployment.started(worker)
    deployment.publish([Message(bad.value, name.encode(), HEADERS) for name, bad in BAD.items()])
    deployment.wait_done()
    assert [letter.record.key for letter in deployment.dead_letters()] == [name.encode() for name in BAD]
    assert deployment.check_exactly_once() == []
    assert worker.terminate() == 0


def test_a_dead_letter_that_cannot_be_written_stops_the_worker(deploy: Deploy) -> None:
    deployment = deploy(partitions=1, topics=False)
    plans = plan_topics(deployment.settings, partitions=1)
    plans[-1] = dataclasses.replace(plans[-1], config={"max.message.bytes": "100000"})
    create_topics(deployment.admin, plans)
    good = list(payments(40))
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish([*messages_of(good[:20]), Message(b"x" * 200_000, b"large"), *messages_of(good[20:])])
    assert worker.wait_exit() == 15
    assert deployment.topics.dead_letters in worker.output()
    assert "max.message.bytes" in worker.output()
    assert deployment.dead_letters() == []
    # Nothing was dropped: once the topic takes it, all goes on.
    deployment.configure(deployment.topics.dead_letters, "max.message.bytes", "1000000")
    deployment.started(deployment.worker())
    deployment.wait_done()
    assert len(deployment.check_exactly_once()) == len(good)
    assert [letter.record.key for letter in deployment.dead_letters()] == [b"large"]
