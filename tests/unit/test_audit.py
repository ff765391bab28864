"""The audit holds for an honest run, and every kind of dishonesty is found under its own name."""

from __future__ import annotations

import base64
import json
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from stream.audit import MEANINGS, Auditor, AuditReport, Problem
from stream.config import TopicSettings
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.partitioner import partition_for
from stream.kafka.port import TopicPartition

TOPICS = TopicSettings()
PARTITIONS = 3
COUNTS = dict.fromkeys(TOPICS.model_dump().values(), PARTITIONS)
Output = tuple[str, int, dict[str, Any]]  # topic, partition, content


def event(number: int, account: str, **more: Any) -> dict[str, Any]:
    return {
        "event_id": f"event-{number}",
        "account_id": account,
        "timestamp": f"2026-11-23T10:{number // 60 % 60:02d}:{number % 60:02d}Z",
        "amount": 1.0 + number,
        **more,
    }


@dataclass
class Run:
    """Inputs on a broker, and the outputs that an honest engine would have written, still to be published."""

    broker: MemoryBroker = field(default_factory=MemoryBroker)
    outputs: list[Output] = field(default_factory=list)
    duplicates: int = 0
    _last: dict[tuple[int, str], deque[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for topic in TOPICS.model_dump().values():
            self.broker.create_topic(topic, partitions=PARTITIONS)

    def send(self, content: dict[str, Any] | bytes | None, *, key: str = "", topic: str = TOPICS.transactions) -> None:
        value = json.dumps(content).encode() if isinstance(content, dict) else content
        account = content["account_id"] if isinstance(content, dict) else key
        partition = partition_for(account.encode(), PARTITIONS)
        offset = self.broker.log(TopicPartition(topic, partition)).next_offset
        self.broker.append(topic, value, key=account.encode(), partition=partition)
        origin = {"topic": topic, "partition": partition, "offset": offset}
        if not isinstance(content, dict):
            encoded = None if value is None else base64.b64encode(value).decode()
            self.outputs.append((TOPICS.dead_letters, partition, {"origin": origin, "value": encoded}))
        elif topic == TOPICS.transactions:
            self._answer(content, partition, origin)

    def _answer(self, content: dict[str, Any], partition: int, origin: dict[str, Any]) -> None:
        """A slow engine: declines large amounts, knows the account's last 64 event ids."""
        last = self._last.setdefault((partition, content["account_id"]), deque(maxlen=64))
        if content["event_id"] in last:
            self.duplicates += 1
            return
        last.append(content["event_id"])
        decision = "decline" if content["amount"] > 900 else "approve"
        score = {
            **{name: content[name] for name in ("event_id", "account_id", "timestamp")},
            "origin": origin,
            "decision": decision,
            "flags": [],
        }
        self.outputs.append((TOPICS.scores, partition, score))
        if decision != "approve":
            self.outputs.append((TOPICS.alerts, partition, {**score, "reasons": []}))

    def publish(self) -> None:
        for topic, partition, content in self.outputs:
            self.broker.append(topic, json.dumps(content).encode(), partition=partition)

    def audit(self, committed: dict[int, int] | None = None) -> AuditReport:
        reader = MemoryKafka(self.broker).reader()
        return Auditor(reader, TOPICS, COUNTS, committed=committed).run()


def honest(events: int = 1_000, seed: int = 5) -> Run:
    """Traffic with duplicates near and far, malformed messages, null values and bad labels."""
    run, rng = Run(), random.Random(seed)
    sent: list[dict[str, Any]] = []
    for number in range(events):
        chance = rng.random()
        if chance < 0.05 and sent:
            run.send(sent[-rng.randrange(1, min(len(sent), 300) + 1)])
        elif chance < 0.08:
            run.send(rng.choice([b"{", b"\xff", None, b"[1]"]), key=f"acc-{rng.randrange(9)}")
        elif chance < 0.09:
            run.send(b"no label", key="acc-1", topic=TOPICS.labels)
        else:
            sent.append(event(number, f"acc-{rng.randrange(9)}"))
            run.send(sent[-1])
    return run


def places(run: Run, topic: str) -> list[int]:
    return [place for place, output in enumerate(run.outputs) if output[0] == topic]


def test_an_honest_run_holds_and_the_counts_are_those_of_the_run() -> None:
    run = honest()
    run.publish()
    report = run.audit()
    assert report.findings.counts == {}
    assert report.identity_holds
    assert report.exactly_once
    assert report.total("scored") == len(places(run, TOPICS.scores)) > 800
    assert report.total("duplicates") == run.duplicates > 20
    letters = [run.outputs[place][2]["origin"]["topic"] for place in places(run, TOPICS.dead_letters)]
    assert report.total("dead") == letters.count(TOPICS.transactions) > 10
    assert report.labels_dead == letters.count(TOPICS.labels) > 0
    assert report.alerts == len(places(run, TOPICS.alerts)) > 50
    assert report.total("events") == report.total("scored") + report.total("duplicates") + report.total("dead")
    assert report.notes == ()


def test_the_json_of_a_report_is_complete() -> None:
    run = honest(100)
    del run.outputs[places(run, TOPICS.scores)[3]]
    run.publish()
    document = json.loads(json.dumps(run.audit().as_json()))
    assert document["identity_holds"] is False
    assert document["exactly_once"] is False
    assert document["lost"] == 1
    assert document["problems"]["lost"]["count"] == 1
    assert document["problems"]["lost"]["examples"][0].startswith("transactions-")
    assert sum(partition["events"] for partition in document["partitions"]) == document["events"]


def drop(topic: str) -> Callable[[Run], None]:
    def spoil(run: Run) -> None:
        del run.outputs[places(run, topic)[7]]

    return spoil


def double(topic: str) -> Callable[[Run], None]:
    def spoil(run: Run) -> None:
        run.outputs.append(run.outputs[places(run, topic)[7]])

    return spoil


def change(topic: str, **fields: Any) -> Callable[[Run], None]:
    def spoil(run: Run) -> None:
        place = places(run, topic)[7]
        name, partition, content = run.outputs[place]
        run.outputs[place] = (name, partition, {**content, **fields})

    return spoil


def origin(topic: str = TOPICS.transactions, partition: int = 0, offset: int = 10**6) -> dict[str, Any]:
    return {"topic": topic, "partition": partition, "offset": offset}


def swap_two_scores_of_one_account(run: Run) -> None:
    first, second = [p for p in places(run, TOPICS.scores) if run.outputs[p][2]["account_id"] == "acc-3"][10:12]
    run.outputs[first], run.outputs[second] = run.outputs[second], run.outputs[first]


def an_account_in_two_partitions(run: Run) -> None:
    place = next(p for p in places(run, TOPICS.scores)[50:] if run.outputs[p][2]["account_id"] == "acc-3")
    topic, partition, content = run.outputs[place]
    run.outputs[place] = (topic, (partition + 1) % PARTITIONS, content)


def score_a_duplicate(run: Run) -> None:
    last = event(5_000, "acc-3")
    run.send(last)
    run.send(last)
    topic, partition, content = run.outputs[places(run, TOPICS.scores)[-1]]
    offset = content["origin"]["offset"]
    run.outputs.append((topic, partition, {**content, "origin": origin(partition=partition, offset=offset + 1)}))
    run.outputs.append((TOPICS.alerts, *run.outputs[-1][1:]))


def a_repeat_from_too_long_ago_without_a_score(run: Run) -> None:
    run.send(event(6_000, "acc-3"))
    for number in range(6_001, 6_001 + 64):
        run.send(event(number, "acc-3"))
    run.send(event(6_000, "acc-3"))
    assert run.outputs[-2][2]["event_id"] == "event-6000"
    del run.outputs[-2:]


def score_a_dead_letter(run: Run) -> None:
    letters = [run.outputs[place] for place in places(run, TOPICS.dead_letters)]
    _, partition, content = next(letter for letter in letters if letter[2]["origin"]["topic"] == TOPICS.transactions)
    run.outputs.append((TOPICS.scores, partition, {"origin": content["origin"], "decision": "approve"}))


def hide_an_alert_behind_an_approval(run: Run) -> None:
    alert = run.outputs[places(run, TOPICS.alerts)[7]][2]
    place = next(p for p in places(run, TOPICS.scores) if run.outputs[p][2]["origin"] == alert["origin"])
    topic, partition, content = run.outputs[place]
    run.outputs[place] = (topic, partition, {**content, "decision": "approve"})


@pytest.mark.parametrize(
    ("spoil", "problem", "identity_holds"),
    [
        (drop(TOPICS.scores), Problem.LOST, False),
        (drop(TOPICS.dead_letters), Problem.LOST, False),
        (a_repeat_from_too_long_ago_without_a_score, Problem.LOST, False),
        (double(TOPICS.scores), Problem.SCORED_TWICE, True),
        (double(TOPICS.dead_letters), Problem.DEAD_TWICE, True),
        (score_a_dead_letter, Problem.SCORED_AND_DEAD, True),
        (score_a_duplicate, Problem.DUPLICATE_SCORED, True),
        (change(TOPICS.scores, event_id="another"), Problem.IDENTITY_CHANGED, True),
        (change(TOPICS.scores, account_id="another"), Problem.IDENTITY_CHANGED, True),
        (change(TOPICS.scores, timestamp="2026-11-23T10:00:00.001Z"), Problem.IDENTITY_CHANGED, True),
        (change(TOPICS.scores, origin=origin()), Problem.UNKNOWN_ORIGIN, False),
        (change(TOPICS.scores, origin=origin(partition=77, offset=1)), Problem.UNKNOWN_ORIGIN, False),
        (change(TOPICS.scores, origin=origin("elsewhere", offset=1)), Problem.UNKNOWN_ORIGIN, False),
        (change(TOPICS.scores, origin=origin(TOPICS.labels, offset=0)), Problem.UNKNOWN_ORIGIN, False),
        (change(TOPICS.scores, origin=origin(offset=-1)), Problem.UNKNOWN_ORIGIN, False),
        (change(TOPICS.scores, origin=None), Problem.UNREADABLE, False),
        (swap_two_scores_of_one_account, Problem.OUT_OF_ORDER, True),
        (an_account_in_two_partitions, Problem.OUT_OF_ORDER, True),
        (drop(TOPICS.alerts), Problem.ALERT_MISSING, True),
        (double(TOPICS.alerts), Problem.ALERT_TWICE, True),
        (hide_an_alert_behind_an_approval, Problem.ALERT_UNFOUNDED, True),
    ],
)
def test_every_kind_of_dishonesty_is_found(
    spoil: Callable[[Run], None], problem: Problem, identity_holds: bool
) -> None:
    run = honest()
    spoil(run)
    run.publish()
    report = run.audit()
    assert problem in report.findings.counts, report.findings
    assert not report.exactly_once
    assert report.identity_holds is identity_holds


def test_every_problem_has_words_and_a_test() -> None:
    marks = test_every_kind_of_dishonesty_is_found.pytestmark  # type: ignore[attr-defined]
    assert {case[1] for case in marks[0].args[1]} == set(Problem) == set(MEANINGS)


def test_an_event_that_is_not_committed_yet_is_pending_and_not_lost() -> None:
    run = honest(200)
    last = run.outputs[places(run, TOPICS.scores)[-1]][2]["origin"]
    run.outputs = [output for output in run.outputs if output[2]["origin"] != last]
    run.publish()
    ends = {n: run.broker.log(TopicPartition(TOPICS.transactions, n)).next_offset for n in range(PARTITIONS)}
    report = run.audit({**ends, last["partition"]: last["offset"]})
    assert (report.total("pending"), report.total("lost")) == (1, 0)
    assert report.findings.counts == {}
    assert not report.exactly_once
    assert not report.identity_holds
    lost = run.audit({**ends, last["partition"]: last["offset"] + 1})
    assert (lost.total("pending"), lost.total("lost")) == (0, 1)


def test_outputs_of_what_is_not_committed_yet_may_still_be_on_their_way() -> None:
    run = honest()
    place = places(run, TOPICS.alerts)[-1]
    origin_of_it = run.outputs[place][2]["origin"]
    score = next(p for p in places(run, TOPICS.scores) if run.outputs[p][2]["origin"] == origin_of_it)
    ends = {n: run.broker.log(TopicPartition(TOPICS.transactions, n)).next_offset for n in range(PARTITIONS)}
    committed = {**ends, origin_of_it["partition"]: origin_of_it["offset"]}
    for missing in (place, score):
        partial = honest()
        del partial.outputs[missing]
        partial.publish()
        assert partial.audit(committed).findings.counts == {}
        assert partial.audit(ends).findings.counts != {}


def test_a_repeat_may_be_scored_again_where_the_score_says_that_history_was_missing() -> None:
    run = honest(50)
    score_a_duplicate(run)
    for topic, _, content in run.outputs[-2:]:
        if topic == TOPICS.scores:
            content["flags"] = ["cold"]
    run.publish()
    assert run.audit().exactly_once


def test_outputs_of_events_that_retention_has_dropped_are_left_alone() -> None:
    run = honest(300)
    run.publish()
    run.broker.delete_before(TopicPartition(TOPICS.transactions, 1), 20)
    assert run.audit().exactly_once


def test_missing_old_outputs_are_explained() -> None:
    run = honest(300)
    run.publish()
    run.broker.delete_before(TopicPartition(TOPICS.scores, 1), 20)
    report = run.audit()
    assert report.total("lost") > 0
    assert "older outputs are gone" in report.notes[0]


def test_aborted_records_and_control_markers_are_neither_events_nor_outputs() -> None:
    run = honest(200)
    client = MemoryKafka(run.broker)
    producer = client.producer("engine")
    producer.init_transactions()
    producer.begin()
    for topic, partition, content in run.outputs:
        producer.produce(topic, json.dumps(content).encode(), partition=partition)
    producer.abort()
    source = client.producer("source")
    source.init_transactions()
    for committed in (True, False):
        source.begin()
        run.broker.append_in_transaction(
            "source", 1, [(TOPICS.transactions, b"never seen", b"acc-1", (), None, None)] if not committed else []
        )
        source.commit() if committed else source.abort()
    run.publish()
    report = run.audit()
    assert report.exactly_once
    assert report.identity_holds


def test_an_output_that_appears_while_the_audit_reads_is_not_an_unknown_origin() -> None:
    run = honest(200)
    run.publish()
    auditor = Auditor(MemoryKafka(run.broker).reader(), TOPICS, COUNTS)
    run.outputs.clear()
    for number in range(7_000, 7_020):
        run.send(event(number, f"acc-{number % 9}"))
    run.publish()
    report = auditor.run()
    assert report.exactly_once
    assert report.identity_holds
