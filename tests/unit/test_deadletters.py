"""Dead letters read, chosen, and followed through the log: what became of each, whoever wrote what on the topics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from stream.config import BatchSettings
from stream.deadletters.letter import Letter, Place, Selection, moment_or_age_ms, parse_letter, parse_place
from stream.deadletters.overview import Overview, Status, overview
from stream.deadletters.redrive import Redriver, send
from stream.domains.payments import DOMAIN
from stream.events.records import dead_letter, encode
from stream.events.rejects import Reject, RejectCode, Stage
from stream.kafka.headers import REDRIVEN, SOURCE_MS, Redriven, forwarded, redriven, redriven_header, source_ms
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import Headers, TopicPartition
from tests.unit.test_decode import EVENT, packed

NOW_MS = 1_767_225_600_000
INPUT, LABELS, DEAD = "transactions", "labels", "transactions.dlq"
PARTITIONS = {DEAD: 2, INPUT: 2, LABELS: 2}
REJECT = Reject(0, Stage.VALIDATE, RejectCode.BAD_TEXT, "merchant_id", "merchant_id: is empty; expected: a text")


@dataclass
class Scene:
    """Topics in memory, and a worker that is played by hand."""

    broker: MemoryBroker
    committed: dict[TopicPartition, int]

    def arrive(self, value: bytes | None, headers: Headers = (), partition: int = 0, key: bytes = b"k") -> Place:
        tp = TopicPartition(INPUT, partition)
        offset = self.broker.log(tp).next_offset
        self.broker.append(INPUT, value, key=key, headers=headers, partition=partition, timestamp_ms=NOW_MS)
        return Place(*tp, offset)

    def die(self, place: Place, reject: Reject = REJECT, failed_ms: int = NOW_MS) -> None:
        """Its dead letter is written."""
        (record,) = self.broker.log(place.tp).read(place.offset, 1)[0]
        letter = dead_letter(record, reject, engine_version="1", failed_ms=failed_ms)
        self.broker.append(DEAD, encode([letter])[0], key=record.key, partition=place.partition, timestamp_ms=failed_ms)
        self.done()

    def done(self) -> None:
        """The worker has committed all there is."""
        for topic in (INPUT, LABELS):
            for number in range(2):
                tp = TopicPartition(topic, number)
                self.committed[tp] = self.broker.log(tp).next_offset

    def look(self, selection: Selection = Selection(), *, with_values: bool = True) -> Overview:  # noqa: B008
        reader = MemoryKafka(self.broker).reader()
        return overview(reader, DEAD, PARTITIONS, lambda _: self.committed, selection, with_values=with_values)

    def redrive(self, letters: Sequence[Letter], corrections: dict[Place, bytes] | None = None) -> int:
        redriver = Redriver(DOMAIN, BatchSettings(), transactions=INPUT, labels=LABELS, partitions=PARTITIONS)
        planned = redriver.plan(letters, corrections or {}, NOW_MS)
        return send(planned, MemoryKafka(self.broker).plain_producer())


@pytest.fixture
def scene() -> Scene:
    broker = MemoryBroker()
    for topic, count in PARTITIONS.items():
        broker.create_topic(topic, partitions=count)
    return Scene(broker, {})


def status(scene: Scene) -> dict[str, Status]:
    return {str(place): status for place, status in scene.look().status.items()}


def test_a_letter_through_its_whole_life(scene: Scene) -> None:
    place = scene.arrive(packed(merchant_id=""), [("own", b"1")])
    scene.arrive(packed())
    scene.die(place)
    assert status(scene) == {f"{INPUT}-0@0": Status.OPEN}
    scene.redrive(scene.look().letters)
    assert status(scene) == {f"{INPUT}-0@0": Status.PENDING}
    again = Place(INPUT, 0, 2)
    scene.die(again)
    assert status(scene) == {f"{INPUT}-0@0": Status.AGAIN, f"{INPUT}-0@2": Status.OPEN}
    newest = scene.look(Selection(places=frozenset([again]))).letters[0]
    assert (newest.first, newest.times) == (place, 1)
    scene.redrive([newest])
    scene.done()
    assert status(scene) == {f"{INPUT}-0@0": Status.AGAIN, f"{INPUT}-0@2": Status.DONE}
    (record,) = scene.broker.log(place.tp).read(3, 1)[0]
    assert sorted(record.headers) == [("own", b"1"), redriven_header(*place, 2)]


def test_one_of_two_redrives_is_enough(scene: Scene) -> None:
    place = scene.arrive(packed(merchant_id=""))
    scene.die(place)
    letters = scene.look().letters
    scene.redrive(letters)
    scene.redrive(letters)
    scene.die(Place(INPUT, 0, 1))
    assert scene.look().status[place] is Status.DONE


def test_a_corrected_letter_goes_where_its_account_lives(scene: Scene) -> None:
    first = scene.arrive(packed(merchant_id=""), partition=1, key=EVENT["account_id"].encode())
    second = scene.arrive(b"garbled", partition=1, key=b"unknown")
    for place in (first, second):
        scene.die(place)
    redriver = Redriver(DOMAIN, BatchSettings(), transactions=INPUT, labels=LABELS, partitions=PARTITIONS)
    letters = scene.look().letters
    plan = redriver.plan(letters, {first: packed(), second: packed(account_id="a9")}, NOW_MS)
    assert [(each.key, each.partition, each.corrected) for each in plan] == [
        (EVENT["account_id"].encode(), 1, True),
        (b"a9", None, True),
    ]
    raw = redriver.plan(letters, {}, NOW_MS)
    assert [(each.key, each.partition, each.value) for each in raw] == [(m.key, 1, m.value) for m in letters]
    assert [each.refusal.code if each.refusal else None for each in raw] == [RejectCode.BAD_TEXT, RejectCode.NOT_JSON]
    # A topic made anew with fewer partitions: by key.
    smaller = Redriver(DOMAIN, BatchSettings(), transactions=INPUT, labels=LABELS, partitions={INPUT: 1, LABELS: 1})
    assert [each.partition for each in smaller.plan(letters, {}, NOW_MS)] == [None, None]
    # A letter of another deployment that shares the topic is not sent anywhere.
    foreign = replace(letters[0], origin=Place("elsewhere", 0, 0))
    assert redriver.plan([foreign], {}, NOW_MS) == []


def test_a_wrong_key_is_told(scene: Scene) -> None:
    place = scene.arrive(packed(), key=b"somebody else")
    scene.die(place)
    redriver = Redriver(DOMAIN, BatchSettings(), transactions=INPUT, labels=LABELS, partitions=PARTITIONS)
    (plan,) = redriver.plan(scene.look().letters, {}, NOW_MS)
    assert (plan.keyed_by_account, plan.key, plan.refusal) == (False, b"somebody else", None)


def test_what_is_no_letter_is_counted_and_harms_nothing(scene: Scene) -> None:
    place = scene.arrive(packed(merchant_id=""))
    scene.die(place)
    (record,) = scene.broker.log(TopicPartition(DEAD, 0)).read(0, 1)[0]
    good = json.loads(record.value or b"")
    spoilt = [
        {**good, "value": "not base64!"},
        {**good, "failed_at": "yesterday"},
        {**good, "origin": {**good["origin"], "topic": "../../etc/cron.d/x"}},
        {**good, "origin": {**good["origin"], "offset": "many"}},
        {**good, "origin": None},
        {name: value for name, value in good.items() if name != "code"},
        [good],
    ]
    values = [*(json.dumps(each).encode() for each in spoilt), b"", b"\xff", None, b"[" * 100_000]
    for value in values:
        scene.broker.append(DEAD, value, key=b"k", partition=1)
    found = scene.look()
    assert (len(found.letters), found.unreadable) == (1, len(values))
    assert parse_letter(record) == found.letters[0]


def test_a_selection_must_fit_in_everything(scene: Scene) -> None:
    for number in range(6):
        place = scene.arrive(packed(merchant_id=""), partition=number % 2)
        code = RejectCode.BAD_TEXT if number < 4 else RejectCode.NOT_JSON
        stage = Stage.VALIDATE if number < 4 else Stage.DECODE
        scene.die(place, replace(REJECT, code=code, stage=stage, reason=f"Reason {number}"), NOW_MS + 1_000 * number)

    def found(selection: Selection) -> list[int]:
        return [int(letter.reason.split()[1]) for letter in scene.look(selection, with_values=False).letters]

    assert found(Selection()) == [0, 1, 2, 3, 4, 5]
    assert found(Selection(codes=frozenset(["not_json"]))) == [4, 5]
    assert found(Selection(stages=frozenset(["validate"]), partitions=frozenset([1]))) == [1, 3]
    assert found(Selection(offsets=(1, 2))) == [2, 3]
    assert found(Selection(since_ms=NOW_MS + 2_000, until_ms=NOW_MS + 4_000)) == [2, 3]
    assert found(Selection(reason="REASON 5")) == [5]
    assert found(Selection(topic=LABELS)) == []
    assert found(Selection(places=frozenset([Place(INPUT, 0, 0)]))) == [0]
    assert all(letter.value is None for letter in scene.look(with_values=False).letters)


@pytest.mark.parametrize("text", ["transactions-0@17", "a-b.c_d-3@0"])
def test_a_place_is_written_as_the_audit_writes_it(text: str) -> None:
    place = parse_place(text)
    assert place is not None
    assert str(place) == text


@pytest.mark.parametrize("text", ["transactions", "t-x@1", "t-1@", "../t-1@2", "t-1@2\n", "t-1@" + "9" * 30])
def test_what_is_no_place(text: str) -> None:
    assert parse_place(text) is None


def test_times_and_ages() -> None:
    assert moment_or_age_ms("2026-01-01T00:00:00Z", 0) == NOW_MS
    assert moment_or_age_ms("2026-01-01", 0) == NOW_MS
    assert [NOW_MS - (moment_or_age_ms(age, NOW_MS) or 0) for age in ("90min", "2h", "7d")] == [
        5_400_000,
        7_200_000,
        604_800_000,
    ]
    assert moment_or_age_ms("soon", NOW_MS) is None


def test_the_header_says_where_a_message_first_lay() -> None:
    header = redriven_header("t", 3, 10**15, 2)
    assert redriven([("x", b"1"), header]) == Redriven("t", 3, 10**15, 2)
    assert forwarded([header]) == [header]
    assert source_ms([(SOURCE_MS, b"1")]) == 1
    assert source_ms([(SOURCE_MS, b"1"), header]) is None
    for value in (
        b"",
        b"t/1/2",
        b"t/1/2/x",
        b"t/1/2/3/4",
        b"t/-1/2/3",
        b"\xff/1/2/3",
        b"/1/2/3",
        b"t/1/2/" + b"9" * 400,
    ):
        found = redriven([(REDRIVEN, value)])
        assert found is None or found.topic == "\ufffd"
