"""The rights that each role needs on Kafka and on Redis, no more; tests take each away in turn."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stream.config import Settings
from stream.state.keys import KeyNames

PASSWORD = "PASSWORD"
"""Stands for a password in what is printed."""


class Role(StrEnum):
    """Who connects."""

    WORKER = "worker"
    """`riskstream run`."""
    SOURCE = "source"
    """What publishes events and labels: payment systems, simulate, replay."""
    OPERATOR = "operator"
    """doctor, audit, alerts, deadletter, state."""


@dataclass(frozen=True, slots=True)
class KafkaRight:
    """One ACL: `operation` on the resource of this name, or on all whose names begin so (`prefixed`)."""

    resource: str
    name: str
    operation: str
    prefixed: bool = False


def kafka_rights(settings: Settings, role: Role) -> list[KafkaRight]:
    """Read and Write imply Describe."""
    topics, group = settings.topics, settings.kafka.group
    inputs, outputs = [topics.transactions, topics.labels], [topics.scores, topics.alerts, topics.dead_letters]
    transactional = KafkaRight("transactional-id", f"{group}-", "Write", prefixed=True)
    if role is Role.SOURCE:
        return [KafkaRight("topic", name, "Write") for name in inputs]
    if role is Role.WORKER:
        # The scores tell where labels were folded, and how far the group had come.
        read = [*inputs, topics.scores, *([topics.models] if settings.scoring.library is not None else [])]
        return [
            *(KafkaRight("topic", name, "Read") for name in read),
            *(KafkaRight("topic", name, "Write") for name in outputs),
            KafkaRight("group", group, "Read"),
            transactional,
        ]
    return [
        *(KafkaRight("topic", name, "Read") for name in [*inputs, *outputs]),
        *(KafkaRight("topic", name, "Write") for name in inputs),
        *(KafkaRight("topic", name, "DescribeConfigs") for name in [*inputs, *outputs]),
        KafkaRight("group", group, "Describe"),
        transactional,
    ]


def kafka_commands(rights: Sequence[KafkaRight], user: str, bootstrap_servers: str) -> Iterator[str]:
    """The command lines of Apache Kafka's own tool that give these rights to a user."""
    together: dict[tuple[str, str, bool], list[str]] = {}
    for right in rights:
        together.setdefault((right.resource, right.operation, right.prefixed), []).append(right.name)
    for (resource, operation, prefixed), names in together.items():
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap_servers, "--command-config", "admin.properties"]
        words += ["--add", "--allow-principal", f"User:{user}", "--operation", operation]
        words += [word for name in names for word in (f"--{resource}", name)]
        words += ["--resource-pattern-type", "prefixed"] if prefixed else []
        yield shlex.join(words)


REDIS_COMMANDS = (
    ("get", "the checkpoint"),
    ("mget", "rows"),
    ("evalsha", "writes, compared inside Redis"),
    ("eval", "the same, when Redis has forgotten the scripts"),
    ("getrange", "within the scripts: the offsets of a row"),
    ("set", "within the scripts: rows, the checkpoint"),
    ("hget", "within the scripts: an entity's copy"),
    ("hset", "within the scripts: an entity's copy"),
    ("hgetall", "within the scripts: an entity's copies"),
    ("pexpire", "within the scripts: an entity's copies"),
    ("scan", "a rebuild: finding the partition's rows; sees all names of keys"),
    ("unlink", "a rebuild: dropping them"),
    ("hdel", "a rebuild: dropping the partition's copies"),
    ("ping", "the check at the start"),
    ("info", "the check at the start: noeviction, persistence, memory"),
)
"""Every command that a worker sends, or that its scripts call, and what for."""

REDIS_OPTIONAL = (("config|get", "doctor: whether snapshots are taken; without it persistence is reported as unknown"),)


def redis_rule(settings: Settings, role: Role, user: str) -> str | None:
    """The line for redis-cli that makes the user; None for a role that needs no Redis."""
    if role is Role.SOURCE:
        return None
    prefix = KeyNames(settings.state_namespace, "", b"").prefix.decode()
    optional = REDIS_OPTIONAL if role is Role.OPERATOR else ()
    commands = [f"+{name}" for name, _ in (*REDIS_COMMANDS, *optional)]
    return " ".join(
        ["ACL SETUSER", user, "on", f">{PASSWORD}", "resetkeys", f"~{prefix}*", "resetchannels", "-@all", *commands]
    )
