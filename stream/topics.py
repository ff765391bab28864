"""The five topics: how they should be made, making them, and refusing those that do not fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream.config import Settings
from stream.errors import TopicError
from stream.kafka.port import Admin, TopicDescription

_DAY_MS = 86_400_000
_KAFKA_DEFAULT_MESSAGE_BYTES = 1_048_588
_ENVELOPE_BYTES = 65_536
_SPARE_DAYS = 5


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it should be made."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicOutcome:
    """One topic after `create_topics`. `warnings` say where one that was there already differs."""

    name: str
    created: bool
    partitions: int
    replication_factor: int
    warnings: tuple[str, ...] = field(default=())


def plan_topics(
    settings: Settings, *, partitions: int = 4, replication_factor: int = 1, retention_days: int | None = None
) -> list[TopicPlan]:
    """The five topics in the order of their settings. `retention_days` None: the feature horizon and some.

    The inputs hold a message of 900 KB, so that a bad one can arrive; the dead letters hold it in base64.
    """
    days = retention_days if retention_days is not None else settings.state.horizon_days + _SPARE_DAYS
    in_bytes = max(_KAFKA_DEFAULT_MESSAGE_BYTES, settings.batch.max_message_bytes + _ENVELOPE_BYTES)
    dead_letter_bytes = in_bytes * 4 // 3 + 2 * _ENVELOPE_BYTES
    topics = settings.topics
    return [
        TopicPlan(
            name,
            partitions,
            replication_factor,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(days * _DAY_MS),
                "max.message.bytes": str(dead_letter_bytes if name == topics.dead_letters else in_bytes),
                # With three copies one may be missing; a broker that lacks acknowledged records never leads.
                "min.insync.replicas": "2" if replication_factor >= 3 else "1",
                "unclean.leader.election.enable": "false",
            },
        )
        for name in topic_names(settings)
    ]


def topic_names(settings: Settings) -> list[str]:
    """Inputs, then outputs."""
    topics = settings.topics
    return [topics.transactions, topics.labels, topics.scores, topics.alerts, topics.dead_letters]


def create_topics(admin: Admin, plans: Sequence[TopicPlan]) -> list[TopicOutcome]:
    """Makes what does not exist yet; running it again changes nothing. Blocks.

    TopicError, before anything is made, when one exists with another number of partitions.
    """
    present = admin.describe_topics([plan.name for plan in plans])
    for plan in plans:
        found = present.get(plan.name)
        if found is not None and found.partitions != plan.partitions:
            raise TopicError(
                f"topic {plan.name} exists with {found.partitions} partitions, {plan.partitions} were asked for: "
                f"ask for --partitions {found.partitions}, use another name (topics.* settings), or delete it. "
                f"Adding partitions would move accounts away from their state"
            )
    outcomes = []
    for plan in plans:
        created = plan.name not in present and admin.create_topic(
            plan.name,
            partitions=plan.partitions,
            replication_factor=plan.replication_factor,
            config=plan.config,
        )
        found = None if created else admin.describe_topics([plan.name]).get(plan.name)
        outcomes.append(_outcome(plan, created, found))
    return outcomes


def partition_counts(admin: Admin, settings: Settings) -> dict[str, int]:
    """Partitions of the five topics by name. TopicError if one is missing, or the inputs differ. Blocks."""
    names = topic_names(settings)
    found = admin.partition_counts(names)
    missing = [name for name in names if name not in found]
    if missing:
        raise TopicError(f"no topic {', '.join(missing)}: make it with `riskstream topics create`")
    transactions, labels = names[:2]
    if found[transactions] != found[labels]:
        raise TopicError(
            f"{transactions} has {found[transactions]} partitions and {labels} has {found[labels]}: "
            f"give both the same number, or an account's labels reach another worker than its events"
        )
    return {name: found[name] for name in names}


def _outcome(plan: TopicPlan, created: bool, found: TopicDescription | None) -> TopicOutcome:
    if found is None:
        return TopicOutcome(plan.name, created, plan.partitions, plan.replication_factor)
    warnings = []
    if found.partitions != plan.partitions:
        warnings.append(f"somebody else has just made it with {found.partitions} partitions, not {plan.partitions}")
    if found.replication_factor != plan.replication_factor:
        warnings.append(f"has {found.replication_factor} copies, not {plan.replication_factor}")
    for name in ("retention.ms", "max.message.bytes"):
        wanted, actual = plan.config[name], found.config.get(name)
        if actual is not None and _is_less(actual, wanted):
            warnings.append(f"{name} is {actual}, less than {wanted}")
    if found.config.get("cleanup.policy", "delete") != "delete":
        warnings.append(f"cleanup.policy is {found.config['cleanup.policy']}: compaction would drop events")
    return TopicOutcome(plan.name, created, found.partitions, found.replication_factor, tuple(warnings))


def _is_less(actual: str, wanted: str) -> bool:
    """Whether a size or a time is shorter than wanted; -1 is without limit."""
    try:
        return 0 <= int(actual) < int(wanted)
    except ValueError:
        return False
