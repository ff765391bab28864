"""Workers on Kafka with TLS, SCRAM and ACLs, and Redis with TLS and an ACL user: with the least rights, and without.

Every refusal is an exit code and a message that names the setting or the right; no output holds a secret.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from stream import app
from stream.config import Settings, load_settings
from stream.errors import NotAuthorisedError
from stream.kafka.connect import client_of
from stream.rights import REDIS_COMMANDS, KafkaRight, Role, kafka_commands, kafka_rights, redis_rule
from stream.stack import ApacheKafka, RedisServer
from tests.broker.harness import (
    Deployment,
    Message,
    WorkerProcess,
    label_of,
    message_of,
    messages_of,
    payments,
    run_command,
)
from tests.broker.secure_servers import PASSWORD, Certificates, SecureKafka, SecureRedis, make_certificates
from tests.conftest import require

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

POLICY = """
version: all
rules:
  - {name: everything, when: [{column: amount, op: ">=", value: 0}], decision: review, reason: all of them}
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[SecureKafka]:
    require(ApacheKafka)
    server = SecureKafka(tmp_path_factory.mktemp("secure-kafka"), certificates).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def redis_of(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[Callable[[Path], SecureRedis]]:
    """A Redis by certificate, each started once."""
    require(RedisServer)
    made: dict[Path, SecureRedis] = {}

    def get(certificate: Path) -> SecureRedis:
        if certificate not in made:
            made[certificate] = SecureRedis(tmp_path_factory.mktemp("secure-redis"), certificate, certificates)
        return made[certificate]

    yield get
    for server in made.values():
        server.stop()


class Corner:
    """A deployment whose workers come through the guarded doors; its topics are made through the back door."""

    def __init__(
        self, kafka: SecureKafka, redis: SecureRedis, certificates: Certificates, name: str, folder: Path
    ) -> None:
        self.kafka, self.redis, self.name = kafka, redis, name
        policy = folder / f"{name}.yaml"
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text(POLICY)
        # Of the deployment's own clients, through the back door, only the Kafka ones are used.
        self.deployment = Deployment(kafka.server, _NoRedis(), name, folder / name, partitions=2)  # type: ignore[arg-type]
        self.deployment.create_topics()
        self.secure: dict[str, object] = {
            "kafka__bootstrap_servers": kafka.secure["good"],
            "kafka__security_protocol": "SASL_SSL",
            "kafka__sasl_username": name,
            "kafka__sasl_password": PASSWORD,
            "kafka__ssl_ca_file": certificates.ca,
            "kafka__request_timeout_ms": 20_000,
            "redis__url": redis.url(name),
            "redis__ssl_ca_file": certificates.ca,
            "scoring__policy": policy,
            "log__level": "debug",
        }
        events = list(payments(40, accounts=8))
        self.deployment.publish([*messages_of(events), Message(b"no event", b"a1")])
        self.deployment.publish([message_of(label_of(events[0]))], self.deployment.topics.labels)

    @property
    def settings(self) -> Settings:
        return self.deployment.settings

    def allow(self, *, kafka: Sequence[KafkaRight] | None = None, redis: str | None = None) -> Corner:
        """The least rights, or others. They may be given once."""
        self.kafka.add_user(self.name, kafka_rights(self.settings, Role.WORKER) if kafka is None else kafka)
        rule = redis if redis is not None else redis_rule(self.settings, Role.WORKER, self.name)
        assert rule is not None
        self.redis.add_user(rule)
        return self

    def worker(self, **settings: object) -> WorkerProcess:
        worker = self.deployment.worker(**{**self.secure, **settings})
        worker.launch()
        return worker

    def tool(self, *words: str, **settings: object) -> tuple[int, str]:
        """Exit code and all output of another command."""
        code, out, err = run_command(self.deployment.environment(**{**self.secure, **settings}), *words)
        return code, out + err


class _NoRedis:
    url = "redis://127.0.0.1:1/0"


@pytest.fixture
def corner(
    kafka: SecureKafka,
    redis_of: Callable[[Path], SecureRedis],
    certificates: Certificates,
    tmp_path: Path,
    unique: str,
) -> Iterator[Callable[..., Corner]]:
    made: list[Corner] = []

    def make(certificate: Path | None = None) -> Corner:
        redis = redis_of(certificate or certificates.good)
        # The end of the name tells tests apart: a user of two of them would have the rights of both.
        name = f"{unique[-30:].strip('-')}-{len(made)}"
        made.append(Corner(kafka, redis, certificates, name, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.deployment.close()


def silent(text: str) -> str:
    """The text, once it is clear that no secret is in it."""
    assert text
    assert PASSWORD not in text
    assert "zq7" not in text
    return text


def refused(worker: WorkerProcess, code: int, *words: str) -> None:
    """The worker ends with this code, and its last words are these."""
    try:
        ended = worker.wait_exit(300)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it goes on: {silent(worker.output())[-3_000:]}", pytrace=False)
    output = silent(worker.output())
    assert ended == code, output[-2_000:]
    last = next(line for line in reversed(output.splitlines()) if line.startswith("error:"))
    for word in words:
        assert word in last, last


def test_the_least_rights_are_enough(corner: Callable[..., Corner]) -> None:
    """For a worker's whole life: start, score, alert, dead letter, label, stop, takeover."""
    place = corner().allow()
    deployment, worker = place.deployment, place.worker()
    worker.wait_ready(300)
    deployment.wait_done()
    process = worker.process
    assert process is not None
    silent(Path(f"/proc/{process.pid}/cmdline").read_text())
    assert worker.terminate() == 0
    silent(worker.output())
    assert len(deployment.check_exactly_once()) == 40
    assert (len(deployment.alerts()), len(deployment.dead_letters())) == (40, 1)
    code, shown = place.tool("config")
    assert code == 0
    assert "sasl_password" in silent(shown)
    # What `doctor` finds with these rights is no error, and it says what it could not look at.
    code, told = place.tool("doctor")
    assert code == 0, told
    assert "topic configuration" in silent(told)
    # The state can be dropped and rebuilt with them too.
    assert place.tool("state", "rebuild", "--yes")[0] == 0
    again = place.worker()
    again.wait_ready(300)
    deployment.publish(messages_of(list(payments(50, accounts=8))[40:]))
    deployment.wait_done()
    assert again.terminate() == 0
    assert len(deployment.check_exactly_once()) == 50


def test_operators_and_sources_need_no_more_than_theirs(corner: Callable[..., Corner]) -> None:
    """An operator looks, counts and redrives; a source writes to the inputs and nowhere else."""
    place = corner().allow()
    worker = place.worker()
    worker.wait_ready(300)
    place.deployment.wait_done()
    for role in (Role.OPERATOR, Role.SOURCE):
        user = f"{place.name}-{role}"
        place.kafka.add_user(user, kafka_rights(place.settings, role))
        if (rule := redis_rule(place.settings, role, user)) is not None:
            place.redis.add_user(rule)
    user = f"{place.name}-{Role.OPERATOR}"
    operator = {"kafka__sasl_username": user, "redis__url": place.redis.url(user)}
    assert json.loads(place.tool("deadletter", "redrive", "--invalid", "--yes", "--json", **operator)[1])["sent"] == 1
    place.deployment.wait_done()
    code, told = place.tool("audit", **operator)
    assert code == 0, told
    assert "1 of the events were redriven" in told
    code, told = place.tool("doctor", **operator)
    assert code == 0, told
    assert "topic configuration" not in told
    source = {**place.secure, "kafka__sasl_username": f"{place.name}-{Role.SOURCE}"}
    settings = load_settings(None, place.deployment.environment(**source), {}).settings
    producer = client_of(settings.kafka).plain_producer()
    producer.produce(settings.topics.transactions, b"{}", key=b"k")
    producer.flush()
    with pytest.raises(NotAuthorisedError, match=settings.topics.scores):
        producer.produce(settings.topics.scores, b"{}", key=b"k")
    producer.close()
    assert worker.terminate() == 0


# The rights on topics are asked for at the start, of the same admin client whatever kafka.client is.
@pytest.mark.parametrize(("client", "tried"), [("kafka-python", (0, 3, 6, 7)), ("confluent", (6, 7))])
def test_each_right_on_kafka_is_needed(corner: Callable[..., Corner], client: str, tried: Sequence[int]) -> None:
    """All but one: the worker ends with 11, and its message says what is missing."""
    names = {"topic": "topics.", "group": "kafka.group", "transactional-id": "transactional id"}
    running: list[tuple[WorkerProcess, KafkaRight]] = []
    for number in tried:
        place = corner()
        rights = kafka_rights(place.settings, Role.WORKER)
        assert len(rights) == 8
        place.allow(kafka=[right for right in rights if right != rights[number]])
        running.append((place.worker(kafka__client=client), rights[number]))
    for worker, right in running:
        named = right.name if right.resource == "topic" else right.resource.replace("-", " ")
        refused(worker, 11, names[right.resource], named, "riskstream rights")


def test_a_restore_needs_the_right_to_read_the_scores(corner: Callable[..., Corner]) -> None:
    place = corner()
    missing = KafkaRight("topic", place.settings.topics.scores, "Read")
    place.allow(kafka=[right for right in kafka_rights(place.settings, Role.WORKER) if right != missing])
    # Twice, so that the last commit's note does not name the places of all labels.
    for published in ([], messages_of(list(payments(60, accounts=8))[40:])):
        worker = place.worker()
        worker.wait_ready(300)
        place.deployment.publish(published)
        place.deployment.wait_done()
        assert worker.terminate() == 0
    assert place.tool("state", "rebuild", "--yes")[0] == 0
    refused(place.worker(), 11, "topics.", missing.name, "riskstream rights")


def test_the_other_rights_on_topics_are_needed(corner: Callable[..., Corner]) -> None:
    """The same for the remaining topics, without a process for each."""
    for number in (1, 4, 5):
        place = corner()
        rights = kafka_rights(place.settings, Role.WORKER)
        place.allow(kafka=[right for right in rights if right != rights[number]])
        settings = load_settings(None, place.deployment.environment(**place.secure), {}).settings
        with pytest.raises(NotAuthorisedError, match=rights[number].name):
            app.check_topics(settings, client_of(settings.kafka))


def test_a_wrong_password_and_wrong_certificates(
    corner: Callable[..., Corner], kafka: SecureKafka, certificates: Certificates
) -> None:
    place = corner().allow()
    kafka_of = {name: {"kafka__bootstrap_servers": address} for name, address in kafka.secure.items()}
    url, other = place.redis.url, corner(certificates.expired).allow()
    elsewhere = corner(certificates.other_host).allow()
    of_kafka: list[tuple[dict[str, object], int, tuple[str, ...]]] = [
        ({"kafka__sasl_password": "wr0ng-zq7"}, 17, ("kafka.sasl_password", "kafka.sasl_username")),
        ({"kafka__sasl_username": "nobody"}, 17, ("kafka.sasl_password", "kafka.sasl_username")),
        (kafka_of["expired"], 18, ("certificate has expired",)),
        (kafka_of["otherhost"], 18, ("another host", "kafka.bootstrap_servers")),
        ({"kafka__ssl_ca_file": certificates.other_ca}, 18, ("unknown CA", "kafka.ssl_ca_file")),
    ]
    of_redis: list[tuple[dict[str, object], int, tuple[str, ...]]] = [
        ({"redis__url": url(place.name, "wr0ng-zq7")}, 17, ("redis.url", "password")),
        ({"redis__url": other.redis.url(place.name)}, 18, ("certificate has expired",)),
        ({"redis__url": elsewhere.redis.url(place.name)}, 18, ("another host", "redis.url")),
        ({"redis__ssl_ca_file": certificates.other_ca}, 18, ("unknown CA", "redis.ssl_ca_file")),
    ]
    # A worker, for one of each kind; the other commands come through the same doors, sooner.
    chosen = [of_kafka[0], of_kafka[2], of_redis[0], of_redis[1]]
    workers = [place.worker(**settings) for settings, _, _ in chosen]
    for cases, words in ((of_kafka, ("topics", "check")), (of_redis, ("state", "rebuild", "--yes"))):
        for settings, code, named in cases:
            ended, told = place.tool(*words, **settings)
            assert (ended, [name for name in named if name not in silent(told)]) == (code, []), told
            # `doctor` says the same, as findings.
            ended, told = place.tool("doctor", **settings)
            assert (ended, [name for name in named if name not in silent(told)]) == (1, []), told
    for worker, (_, code, named) in zip(workers, chosen, strict=True):
        refused(worker, code, *named)


def test_a_missing_right_on_redis_ends_a_worker(corner: Callable[..., Corner]) -> None:
    place = corner()
    rule = redis_rule(place.settings, Role.WORKER, place.name)
    assert rule is not None
    place.allow(redis=rule.replace(" +set ", " "))
    refused(place.worker(), 11, "GETRANGE, SET", "redis.url", "riskstream rights")
    elsewhere = corner()
    other = redis_rule(elsewhere.settings, Role.WORKER, elsewhere.name)
    assert other is not None
    elsewhere.allow(redis=re.sub(r"~\S+", "~{other:*", other))
    refused(elsewhere.worker(), 11, "redis.url", "riskstream rights")


def test_what_the_command_prints_is_what_was_tested(corner: Callable[..., Corner]) -> None:
    place = corner()
    code, printed = place.tool("rights", "--user", "somebody", "--json")
    assert code == 0
    document = json.loads(printed)
    needed = kafka_rights(place.settings, Role.WORKER)
    assert document["redis"] == redis_rule(place.settings, Role.WORKER, "somebody")
    assert [entry["name"] for entry in document["kafka"]] == [right.name for right in needed]
    lines = list(kafka_commands(needed, "somebody", "broker:9092"))
    named = re.findall(r"--(?:topic|group|transactional-id) (\S+)", "\n".join(lines))
    assert sorted(named) == sorted(right.name for right in needed)
    assert all("--allow-principal User:somebody" in line for line in lines)
    assert len(REDIS_COMMANDS) == document["redis"].count(" +")
