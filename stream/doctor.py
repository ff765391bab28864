"""Looks at everything around a worker before it starts, through the ports alone, and says what to do.

Changes nothing: topics are read, never written; the transactional id it takes is its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from stream.config import Settings
from stream.errors import CertificateError, CredentialsError, NotAuthorisedError, RiskstreamError, UnavailableError
from stream.kafka.partitioner import partition_for
from stream.kafka.port import (
    Admin,
    CommittedOffset,
    KafkaClient,
    Reader,
    Record,
    TopicDescription,
    TopicPartition,
)
from stream.kafka.reading import read_range
from stream.state.store import Checkpoint, Finding, StateStore

_DAY_MS = 86_400_000
_ENVELOPE_BYTES = 65_536
"""Room for the headers that a dead letter gets beside the raw bytes of its record."""
_ESCAPES = 4
"""How much longer an event may become in a score record, where text is escaped again."""
_ENOUGH_REPLICAS = 3
_SAMPLED = 50


def examine(
    settings: Settings,
    kafka: KafkaClient | None,
    store: StateStore | None,
    verify_bundle: Callable[[Path], str] | None = None,
    *,
    account_field: str = "account_id",
) -> list[Finding]:
    """Everything that was found, in the order in which a person would mend it. Blocks for some seconds.

    What is None is left out. `verify_bundle` takes the folder, and returns what to say of a good bundle or
    raises BundleRefused. Never raises for what it can report.
    """
    findings: list[Finding] = []
    if kafka is not None:
        findings += _guarded("kafka", lambda: _kafka(settings, kafka, store, account_field))
    if store is not None:
        findings += _guarded("state store", store.check)
    return findings + _files(settings, verify_bundle)


_NO_COORDINATOR = (
    "the replication factor of __transaction_state must not exceed the number of brokers: look at that topic"
)
_START_IT = "start the server, or correct its address in the settings"
_AS_OPERATOR = "run doctor as an operator: `riskstream rights --role operator`"
_REMEDIES: tuple[tuple[type[RiskstreamError], str], ...] = (
    (CredentialsError, "correct kafka.sasl_username and kafka.sasl_password, or make the user on the brokers"),
    (CertificateError, "correct the setting that the message names, or renew the certificate"),
    (NotAuthorisedError, "`riskstream rights` prints the commands that give what is needed"),
    (RiskstreamError, "the message names the setting; correct it and run doctor again"),
)


def _guarded(subject: str, look: Callable[[], list[Finding]], when_away: str = _START_IT) -> list[Finding]:
    """What `look` finds, or what stopped it: one broken thing must not hide the others."""
    try:
        return look()
    except UnavailableError as error:
        return [Finding(subject, "error", str(error), when_away)]
    except RiskstreamError as error:
        remedy = next(remedy for kind, remedy in _REMEDIES if isinstance(error, kind))
        return [Finding(subject, "error", str(error), remedy)]


def _kafka(settings: Settings, kafka: KafkaClient, store: StateStore | None, account_field: str) -> list[Finding]:
    admin = kafka.admin()
    try:
        brokers = admin.broker_ids()
        names = list(_topics(settings).values())
        topics, is_described = _described(admin, names)
        findings = [Finding("kafka brokers", "ok", f"{len(brokers)} reachable at {settings.kafka.bootstrap_servers}")]
        findings += _security(settings)
        findings += _presence(settings, topics)
        if is_described:
            findings += _replication(len(brokers), topics)
            findings += _retention(settings, topics)
            findings += _sizes(settings, topics)
        else:
            message = "may not be read: replication, retention and message sizes are not checked"
            findings.append(Finding("topic configuration", "warning", message, _AS_OPERATOR))
        findings += _guarded("kafka transactions", lambda: _transactions(settings, kafka), _NO_COORDINATOR)
        findings += _guarded("kafka group", lambda: _positions(settings, kafka, admin, topics, store, account_field))
        return findings
    finally:
        admin.close()


def _topics(settings: Settings) -> dict[str, str]:
    """The topics that this worker needs, by field; that of the models only if there is a library."""
    return {
        field: name
        for field, name in settings.topics.model_dump().items()
        if field != "models" or settings.scoring.library is not None
    }


def _described(admin: Admin, names: Sequence[str]) -> tuple[Mapping[str, TopicDescription], bool]:
    """The topics that exist, and whether their configuration could be read: workers need no right to that."""
    try:
        return admin.describe_topics(names), True
    except NotAuthorisedError:
        counts = admin.partition_counts(names)
        return {name: TopicDescription(name, count, 1, {}) for name, count in counts.items()}, False


def _security(settings: Settings) -> Iterator[Finding]:
    """How the connections are protected. On loopback nothing need be."""
    kafka = settings.kafka
    hosts = [server.strip().rpartition(":")[0] for server in kafka.bootstrap_servers.split(",")]
    if all(_is_loopback(host) for host in hosts):
        yield Finding("kafka security", "ok", f"{kafka.security_protocol}, and every broker is on loopback")
    elif not kafka.security_protocol.endswith("SSL"):
        message = (
            f"kafka.security_protocol is {kafka.security_protocol}: events and passwords cross the network in clear"
        )
        yield Finding(
            "kafka security", "warning", message, "SASL_SSL with SCRAM-SHA-512 and ACLs (`riskstream rights`)"
        )
    elif kafka.security_protocol == "SSL" and kafka.ssl_cert_file is None:
        message = "encrypted, but nobody is asked who they are (kafka.security_protocol is SSL without a certificate)"
        yield Finding("kafka security", "warning", message, "SASL_SSL, or kafka.ssl_cert_file and kafka.ssl_key_file")
    else:
        yield Finding("kafka security", "ok", f"{kafka.security_protocol}")
    url = urlsplit(settings.redis.url.get_secret_value())
    if url.scheme == "redis" and not _is_loopback(url.hostname or ""):
        message = "redis.url begins with redis://: rows and the password cross the network in clear"
        yield Finding("redis security", "warning", message, "rediss:// and a user of its own (`riskstream rights`)")
    elif not url.username and not _is_loopback(url.hostname or "") and url.scheme != "unix":
        message = "redis.url names no user: whoever it lets in may do everything"
        yield Finding("redis security", "warning", message, "a user limited to its keys (`riskstream rights`)")
    if not _is_loopback(settings.http.host):
        message = f"http.host is {settings.http.host}: metrics and health are open to whoever reaches it"
        yield Finding("http security", "warning", message, "keep it behind the network's rules; it holds no account")


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "127.0.0.1", "::1", "[::1]"} or host.startswith("127.")


def _inputs(settings: Settings) -> tuple[str, str]:
    return settings.topics.transactions, settings.topics.labels


def _presence(settings: Settings, topics: Mapping[str, TopicDescription]) -> Iterator[Finding]:
    for field, name in _topics(settings).items():
        if name in topics:
            yield Finding(f"topic {name}", "ok", f"{topics[name].partitions} partitions")
        else:
            message = f"does not exist (topics.{field})"
            yield Finding(f"topic {name}", "error", message, "riskstream topics create, or correct the setting")
    transactions, labels = (topics.get(name) for name in _inputs(settings))
    if transactions is None or labels is None:
        return
    if transactions.partitions == labels.partitions:
        yield Finding("co-partitioning", "ok", f"both inputs have {labels.partitions} partitions")
        return
    yield Finding(
        "co-partitioning",
        "error",
        f"{transactions.name} has {transactions.partitions} partitions and {labels.name} {labels.partitions}: labels "
        "would reach other workers than their transactions",
        "give both the same number of partitions, keyed by account id, and publish the labels again",
    )


def _replication(brokers: int, topics: Mapping[str, TopicDescription]) -> Iterator[Finding]:
    if brokers == 1:
        message = "a single broker: its disk is the only copy of events, scores and offsets"
        remedy = "fine for a trial; in production three brokers, replication factor 3, min.insync.replicas 2"
        yield Finding("replication", "warning", message, remedy)
        return
    weak = []
    for topic in topics.values():
        in_sync = _number(topic, "min.insync.replicas", 1)
        if topic.replication_factor < min(_ENOUGH_REPLICAS, brokers):
            weak.append(f"{topic.name} has {topic.replication_factor} replicas")
        elif in_sync < 2:
            weak.append(f"{topic.name} acknowledges with one replica (min.insync.replicas {in_sync})")
        elif in_sync >= topic.replication_factor:
            weak.append(f"{topic.name} stops when one broker is away (min.insync.replicas {in_sync})")
    if weak:
        remedy = "replication factor 3 and min.insync.replicas 2 survive the loss of one broker without a pause"
        yield Finding("replication", "warning", "; ".join(weak), remedy)
    elif topics:
        yield Finding("replication", "ok", "every topic survives the loss of one broker")


def _retention(settings: Settings, topics: Mapping[str, TopicDescription]) -> Iterator[Finding]:
    horizon_days = settings.state.horizon_days
    for name, topic in topics.items():
        is_input = name in _inputs(settings)
        if "compact" in topic.config.get("cleanup.policy", "delete"):
            what = "accounts' earlier events vanish" if is_input else "only an account's last record is kept"
            remedy = f"set cleanup.policy of {name} to delete"
            yield Finding(f"retention {name}", "error" if is_input else "warning", f"compacted: {what}", remedy)
        elif is_input:
            yield _horizon(topic, horizon_days)


def _horizon(topic: TopicDescription, horizon_days: int) -> Finding:
    subject = f"retention {topic.name}"
    retention_ms, retention_bytes = _number(topic, "retention.ms", -1), _number(topic, "retention.bytes", -1)
    remedy = f"set retention.ms of {topic.name} to {horizon_days * _DAY_MS} or more, or -1, and retention.bytes to -1"
    if 0 <= retention_ms < horizon_days * _DAY_MS:
        message = (
            f"keeps {retention_ms / _DAY_MS:.1f} days, the features look back {horizon_days} (state.horizon_days): "
            "after a loss of Redis the rebuilt state would be short"
        )
        return Finding(subject, "warning", message, remedy)
    if retention_bytes >= 0:
        message = f"keeps {retention_bytes} bytes a partition, however few days that is"
        return Finding(subject, "warning", message, remedy)
    return Finding(subject, "ok", f"covers the horizon of {horizon_days} days")


def _sizes(settings: Settings, topics: Mapping[str, TopicDescription]) -> Iterator[Finding]:
    largest_in = max(
        (_number(topics[name], "max.message.bytes", 0) for name in _inputs(settings) if name in topics), default=0
    )
    needed = {
        settings.topics.dead_letters: (
            largest_in + _ENVELOPE_BYTES,
            "a dead letter holds the whole record of an input",
        ),
        settings.topics.scores: (_ESCAPES * settings.batch.max_message_bytes, "a score record holds its event"),
        settings.topics.alerts: (_ESCAPES * settings.batch.max_message_bytes, "an alert holds its event"),
    }
    for name, (minimum, reason) in needed.items():
        limit = _number(topics[name], "max.message.bytes", minimum) if name in topics else minimum
        if limit < minimum:
            message = (
                f"max.message.bytes is {limit}, {minimum} may be needed ({reason}); a refused record stops workers"
            )
            remedy = f"raise max.message.bytes of {name} to {minimum}"
            yield Finding(f"message size {name}", "warning", message, remedy)


def _transactions(settings: Settings, kafka: KafkaClient) -> list[Finding]:
    # Of its own, so that no running worker is fenced; with the worker's prefix, so that the same right covers it.
    transactional_id = f"{settings.kafka.group}-{settings.kafka.worker_id}-doctor"
    producer = kafka.producer(transactional_id)
    try:
        producer.init_transactions()
        producer.begin()
        producer.abort()
    finally:
        producer.close()
    message = "a transactional id was granted (the right to write the outputs is not tried: nothing is written)"
    return [Finding("kafka transactions", "ok", message)]


def _positions(
    settings: Settings,
    kafka: KafkaClient,
    admin: Admin,
    topics: Mapping[str, TopicDescription],
    store: StateStore | None,
    account_field: str,
) -> list[Finding]:
    """Rights to read the inputs and the group's offsets, then those offsets beside log and checkpoints."""
    found = [topics[name] for name in _inputs(settings) if name in topics]
    partitions = [TopicPartition(topic.name, number) for topic in found for number in range(topic.partitions)]
    reader = kafka.reader()
    try:
        first = {partition: reader.first_offset(partition) for partition in partitions}
        newest = _newest(reader, first)
    finally:
        reader.close()
    committed = admin.last_committed(settings.kafka.group, partitions)
    findings = [Finding("kafka group", "ok", f"{settings.kafka.group} may read the inputs and its offsets")]
    findings += _keys(newest, {topic.name: topic.partitions for topic in found}, account_field)
    if store is not None and len(found) == len(_inputs(settings)):
        findings += _guarded("state", lambda: _state(settings, store, first, committed))
    return findings


def _newest(reader: Reader, first: Mapping[TopicPartition, int]) -> list[Record]:
    """The last records of each partition. Asking for offsets alone would not need the right to read."""
    ends = {partition: reader.end_offset(partition) for partition in first}
    return list(read_range(reader, {tp: max(at, ends[tp] - _SAMPLED) for tp, at in first.items()}, ends))


def _keys(records: Sequence[Record], partitions: Mapping[str, int], account_field: str) -> Iterator[Finding]:
    """Whether the newest records lie where their account belongs: in two partitions it would be two accounts."""
    seen = unkeyed = strays = 0
    for record in records:
        account = _account(record.value, account_field)
        if account is not None:
            seen += 1
            unkeyed += record.key != account
            strays += partition_for(account, partitions[record.topic]) != record.partition
    if unkeyed:
        message = f"{unkeyed} of the {seen} newest events and labels are not keyed by their account ({account_field})"
        remedy = "let every source use the account's id as the key: an account in two partitions is two accounts"
        yield Finding("keys", "warning", message, remedy)
    elif strays:
        message = f"{strays} of the {seen} newest events and labels are not where Kafka's default partitioner puts them"
        remedy = "fine if all sources, of events and labels, share another partitioner; else an account is two accounts"
        yield Finding("keys", "warning", message, remedy)
    elif seen:
        message = f"the {seen} newest events and labels are keyed by account, in the default partitioner's partitions"
        yield Finding("keys", "ok", message)


def _account(value: bytes | None, account_field: str) -> bytes | None:
    """The account of an event or a label; None where there is none to be read."""
    try:
        content = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    account = content.get(account_field) if isinstance(content, Mapping) else None
    return account.encode("utf-8", "replace") if isinstance(account, str) else None


def _state(
    settings: Settings,
    store: StateStore,
    first: Mapping[TopicPartition, int],
    committed: Mapping[TopicPartition, CommittedOffset],
) -> list[Finding]:
    """The restore table of the engine, looked up ahead of the start."""
    topic, labels = _inputs(settings)
    rows: dict[str, list[int]] = {row: [] for row in ("ahead", "truncated", "missing", "behind", "clean")}
    for number in sorted(each.partition for each in committed if each.topic == topic):
        done = Checkpoint(
            committed[TopicPartition(topic, number)].offset,
            committed.get(TopicPartition(labels, number), CommittedOffset(0, "")).offset,
        )
        head = store.load_head(number)
        held = head.checkpoint if head is not None else None
        rows[_row_of_restore_table(held, done, first[TopicPartition(topic, number)])].append(number)
    return list(_of_state(settings, rows))


def _row_of_restore_table(held: Checkpoint | None, done: Checkpoint, first: int) -> str:
    if held is None:
        return "missing"
    if held.transactions > done.transactions or held.labels > done.labels:
        return "ahead"
    if held.transactions < first:
        return "truncated"
    return "clean" if held == done else "behind"


def _of_state(settings: Settings, rows: Mapping[str, Sequence[int]]) -> Iterator[Finding]:
    if ahead := rows["ahead"]:
        message = f"partitions {ahead}: the state is ahead of the group's offsets, which were moved back"
        remedy = "give redis.namespace a new name, or clear the state of these partitions so that it is rebuilt"
        yield Finding("state", "error", message, remedy)
    if truncated := rows["truncated"]:
        level = "error" if settings.state.on_truncated_log == "refuse" else "warning"
        message = f"partitions {truncated}: the log no longer holds the events after the checkpoint"
        remedy = "keep records longer; now: state.on_truncated_log = continue goes on and flags the scores"
        yield Finding("state", level, message, remedy)
    if missing := rows["missing"]:
        how = "rebuilt from the log" if settings.state.on_missing_checkpoint == "rebuild" else "begun cold, flagged"
        remedy = "expected after a new namespace or a new feature specification; otherwise give Redis persistence"
        yield Finding("state", "warning", f"partitions {missing}: no checkpoint; their state will be {how}", remedy)
    if behind := rows["behind"]:
        yield Finding("state", "ok", f"partitions {behind}: a start replays the events since the checkpoint")
    if clean := rows["clean"]:
        yield Finding("state", "ok", f"partitions {clean}: up to the committed offset")
    if not any(rows.values()):
        yield Finding("state", "ok", f"group {settings.kafka.group} has not committed anything yet: a first start")


def _files(settings: Settings, verify_bundle: Callable[[Path], str] | None) -> list[Finding]:
    findings = []
    for name in ("policy", "rates"):
        file = getattr(settings.scoring, name)
        if file is not None and not file.is_file():
            findings.append(
                Finding(f"scoring.{name}", "error", f"{file} does not exist", f"correct or remove scoring.{name}")
            )
    folder = settings.scoring.bundle
    if folder is None:
        message = "no bundle is set: scores come from rules alone, flagged"
        findings.append(
            Finding("bundle", "warning", message, "riskstream train, then set scoring.bundle to its folder")
        )
    elif not folder.is_dir():
        message = f"{folder} does not exist or is no folder"
        findings.append(
            Finding("bundle", "error", message, "correct scoring.bundle, or make one with riskstream train")
        )
    elif verify_bundle is not None:
        findings += _guarded("bundle", lambda: [Finding("bundle", "ok", verify_bundle(folder))])
    return findings


def _number(topic: TopicDescription, name: str, default: int) -> int:
    """A whole number of the topic's configuration; the default where the cluster does not tell it."""
    text = topic.config.get(name, "")
    return int(text) if text.lstrip("-").isdecimal() else default
