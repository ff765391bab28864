"""Dead letters on real Kafka: listed, shown, corrected, sent again, scored once."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from stream.events.moments import moment_text
from stream.kafka.headers import REDRIVEN, redriven
from stream.kafka.partitioner import partition_for
from tests.broker.conftest import Deploy
from tests.broker.harness import Deployment, Message, label_of, message_of, messages_of, payments, run_command

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

OWN = [("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("own", b"\x00\xff")]


def run(deployment: Deployment, *words: object, code: int = 0) -> str:
    """What `riskstream ...` prints on stdout, and on stderr where it is to fail."""
    ended, out, err = run_command(deployment.environment(), *words)
    assert ended == code, err
    return out + (err if code else "")


def told(deployment: Deployment, *words: object, code: int = 0) -> str:
    return run(deployment, "deadletter", *words, code=code)


def document(deployment: Deployment, *words: object) -> dict[str, Any]:
    return json.loads(told(deployment, *words, "--json").splitlines()[-1])


def status(deployment: Deployment) -> dict[str, int]:
    return document(deployment, "list", "--all")["by_status"]


def test_letters_come_back_once(deploy: Deploy, tmp_path: Path) -> None:
    """The whole life: a producer's clock is ahead, another one's events are malformed, a label too."""
    deployment = deploy(partitions=2, batch__future_tolerance_ms=1_000)
    good = list(payments(60, seed=8, accounts=6))
    broken = {**good[5], "event_id": "broken", "currency": "eur"}
    label = {**label_of(good[7]), "fraud": "yes"}
    deployment.publish(messages_of(good))
    # Sent an hour ago, from half an hour later: sent again now, they are no longer from the future.
    now_ms = int(time.time() * 1000)
    ahead = moment_text(now_ms - 1_800_000)
    early = [{**event, "event_id": f"early-{n}", "timestamp": ahead} for n, event in enumerate(good[:4])]
    deployment.publish([message_of(event, OWN) for event in early], timestamp_ms=now_ms - 3_600_000)
    deployment.publish([message_of(broken), Message(b"not json", b"a1"), Message(None, b"a2")])
    deployment.publish([message_of(label)], deployment.topics.labels)
    worker = deployment.worker()
    deployment.started(worker)
    deployment.wait_done()

    # Listed by code, with keys masked; the filters narrow it.
    found = document(deployment, "list")
    assert found["by_code"] == {
        "future_timestamp": 4,
        "unknown_code": 1,
        "not_json": 1,
        "null_value": 1,
        "wrong_type": 1,
    }
    assert found["by_status"] == {"open": 8, "pending": 0, "done": 0, "again": 0}
    assert document(deployment, "list", "--topic", "labels")["total"] == 1
    assert document(deployment, "list", "--stage", "decode")["total"] == 2
    assert document(deployment, "list", "--reason", "LATER than")["total"] == 4
    assert document(deployment, "list", "--since", "1h", "--until", "30min")["total"] == 0
    one = next(letter for letter in found["letters"] if letter["code"] == "unknown_code")
    near = (
        "--partition",
        one["partition"],
        "--offsets",
        f"{one['offset']}:{one['offset'] + 1}",
        "--topic",
        "transactions",
    )
    assert [letter["id"] for letter in document(deployment, "list", *near)["letters"]] == [one["id"]]
    text = told(deployment, "list") + told(deployment, "show", one["id"])
    assert "unknown_code" in text
    assert "merchant" not in text.replace("merchant_id", "")
    shown = document(deployment, "show", one["id"], "--value")
    assert json.loads(base64.b64decode(shown["value"])) == broken

    # A dry run sends nothing; it knows what is valid by now.
    before = deployment.ends(deployment.topics.transactions)
    plan = document(deployment, "redrive")
    assert (plan["dry_run"], plan["fit"], plan["valid_now"], plan["would_send"]) == (True, 8, 4, 4)
    assert "nothing was" in told(deployment, "redrive")
    assert deployment.ends(deployment.topics.transactions) == before

    # What is valid now goes; the raw bytes, the same key, headers and partition, and where it first lay.
    assert document(deployment, "redrive", "--yes")["sent"] == 4
    records = deployment.read(deployment.topics.transactions)
    sent = [record for record in records if redriven(record.headers)]
    by_place = {(record.partition, record.offset): record for record in records}
    assert len(sent) == 4
    for record in sent:
        first = redriven(record.headers)
        assert first is not None
        assert first.times == 1
        origin = by_place[first.partition, first.offset]
        assert (record.value, record.key, record.partition) == (origin.value, origin.key, origin.partition)
        assert [h for h in record.headers if h[0] != REDRIVEN] == list(origin.headers) == OWN
    deployment.wait_done()
    assert status(deployment) == {"open": 4, "pending": 0, "done": 4, "again": 0}
    codes = {letter["code"] for letter in document(deployment, "list")["letters"]}
    assert codes == {"unknown_code", "not_json", "null_value", "wrong_type"}

    # A second time they are left out; forced, the workers find that they are duplicates.
    assert document(deployment, "redrive", "--code", "future_timestamp", "--yes")["sent"] == 0
    assert document(deployment, "redrive", "--code", "future_timestamp", "--again", "--yes")["sent"] == 4
    deployment.wait_done()
    scores = [score for score in deployment.scores() if score.content["event_id"].startswith("early-")]
    assert len(scores) == 4
    assert all(dict(score.record.headers)[REDRIVEN].endswith(b"/1") for score in scores)

    # Corrected by hand: one from a file, the label and the rest from a folder.
    file = tmp_path / "letter.json"
    file.write_text(told(deployment, "show", one["id"], "--raw").replace('"eur"', '"EUR"'))
    assert document(deployment, "redrive", one["id"], "--from", file, "--yes")["sent"] == 1
    folder = tmp_path / "letters"
    told(deployment, "show", "--into", folder, "--code", "wrong_type", "--code", "not_json")
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    other = {**good[9], "event_id": "rescued"}
    for file in folder.iterdir():
        is_label = file.name.startswith(deployment.topics.labels)
        file.write_text(json.dumps({**label, "fraud": True} if is_label else other))
    assert document(deployment, "redrive", "--from", folder, "--yes")["sent"] == 2
    deployment.wait_done()
    (rescued,) = [score for score in deployment.scores() if score.content["event_id"] == "rescued"]
    # It was keyed a1; the correction says whose it is.
    assert rescued.record.key == other["account_id"].encode()
    assert rescued.content["origin"]["partition"] == partition_for(other["account_id"].encode(), 2)
    assert worker.metric("riskstream_labels_total", outcome="folded") == 1
    assert [s.content["currency"] for s in deployment.scores() if s.content["event_id"] == "broken"] == ["EUR"]

    # What stays invalid dies again and again, and what it carries does not grow.
    for times in (1, 2, 3):
        assert document(deployment, "redrive", "--code", "null_value", "--invalid", "--yes")["sent"] == 1
        deployment.wait_done()
        (letter,) = document(deployment, "list", "--code", "null_value")["letters"]
        assert letter["redriven"] == times
    place = (letter["partition"], letter["offset"])
    last = next(each for each in deployment.dead_letters() if each.origin[1:] == place)
    assert [header["name"] for header in last.content["headers"]] == [REDRIVEN]

    # Everything is accounted for.
    told_by_audit = json.loads(run(deployment, "audit", "--json"))
    assert told_by_audit["redriven"] == {"events": 13, "scored": 6, "duplicates": 4, "dead": 3}
    assert (told_by_audit["identity_holds"], told_by_audit["lost"], told_by_audit["labels_dead"]) == (True, 0, 1)
    assert worker.metric("riskstream_identity_gap_events") == 0
    assert worker.terminate() == 0


def test_beyond_the_ring_a_second_redrive_is_still_left_out(deploy: Deploy) -> None:
    """More than 64 events of the account later its ring has forgotten the event; the log has not."""
    deployment = deploy(partitions=1)
    (first, *rest) = list(payments(90, seed=2, accounts=1))
    label = json.dumps({**first, "amount": "12"}).encode()
    deployment.publish([Message(label, first["account_id"].encode())])
    deployment.started(deployment.worker())
    deployment.wait_done()
    identity = f"{deployment.topics.transactions}-0@0"
    file = deployment._folder / "letter.json"
    file.write_bytes(json.dumps(first).encode())
    assert document(deployment, "redrive", identity, "--from", file, "--yes")["sent"] == 1
    deployment.publish(messages_of(rest))
    deployment.wait_done()
    assert document(deployment, "redrive", identity, "--from", file, "--yes")["sent"] == 0
    assert len(deployment.check_exactly_once()) == 90
    assert "no dead letter" in told(deployment, "show", f"{deployment.topics.transactions}-0@55", code=2)
