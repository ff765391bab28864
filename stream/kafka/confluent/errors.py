"""librdkafka's errors, translated into the engine's: named by the reaction that they demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from stream.errors import RiskstreamError, TurnAborted, UnavailableError
from stream.kafka import reactions
from stream.kafka.reactions import Reaction, aborting
from stream.tls import KAFKA_TLS, tls_problem

_TLS = frozenset({KafkaError._SSL, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN})

_TABLE: tuple[tuple[frozenset[int], Reaction], ...] = (
    (
        frozenset(
            {
                KafkaError.PRODUCER_FENCED,
                KafkaError._FENCED,
                KafkaError.INVALID_PRODUCER_EPOCH,
                KafkaError.FENCED_INSTANCE_ID,
            }
        ),
        reactions.FENCED,
    ),
    (
        frozenset(
            {
                KafkaError.SASL_AUTHENTICATION_FAILED,
                KafkaError.UNSUPPORTED_SASL_MECHANISM,
                KafkaError._AUTHENTICATION,
            }
        ),
        reactions.CREDENTIALS,
    ),
    (frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED}), reactions.TOPIC_RIGHT),
    (frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED}), reactions.GROUP_RIGHT),
    (
        frozenset({KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED}),
        reactions.TRANSACTIONAL_RIGHT,
    ),
    (frozenset({KafkaError.CLUSTER_AUTHORIZATION_FAILED}), reactions.OTHER_RIGHT),
    (
        frozenset(
            {
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError.TOPIC_EXCEPTION,
                KafkaError._UNKNOWN_TOPIC,
                KafkaError._UNKNOWN_PARTITION,
            }
        ),
        reactions.NO_TOPIC,
    ),
    (
        frozenset({KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION}),
        reactions.LOG_TRUNCATED,
    ),
    (
        frozenset(
            {
                KafkaError.ILLEGAL_GENERATION,
                KafkaError.UNKNOWN_MEMBER_ID,
                KafkaError.REBALANCE_IN_PROGRESS,
                KafkaError._ASSIGNMENT_LOST,
            }
        ),
        reactions.PARTITION_LOST,
    ),
    (
        frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_TIMESTAMP}),
        reactions.RECORD_REFUSED,
    ),
    (
        frozenset(
            {
                KafkaError._INVALID_ARG,
                KafkaError.INVALID_SESSION_TIMEOUT,
                KafkaError.INVALID_TRANSACTION_TIMEOUT,
                KafkaError.INVALID_CONFIG,
                KafkaError.INVALID_GROUP_ID,
                KafkaError.POLICY_VIOLATION,
                KafkaError._SSL,
            }
        ),
        reactions.SETTING_REFUSED,
    ),
    (
        frozenset({KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE}),
        reactions.TOO_OLD,
    ),
)


def translated(
    error: KafkaError, doing: str, *, otherwise: type[RiskstreamError] = UnavailableError
) -> RiskstreamError:
    """The engine's exception for a vendor's one; `otherwise` where no rule fits."""
    # A fatal error of the consumer carries its cause in words only.
    code = KafkaError.FENCED_INSTANCE_ID if "group.instance.id" in str(error.str()) else error.code()
    if code in _TLS and (problem := tls_problem(Exception(error.str()), KAFKA_TLS)) is not None:
        return reactions.CERTIFICATE.error(f"{doing}: {problem}: {reactions.CERTIFICATE.remedy}")
    for codes, reaction in _TABLE:
        if code in codes:
            return reaction.error(f"{doing}: {error.name()} {error.str()}: {reaction.remedy}")
    return otherwise(f"{doing}: {error.name()} {error.str()}")


def in_transaction(error: KafkaError, doing: str) -> RiskstreamError:
    """As `translated`, for a failure inside a transaction: what is not fatal aborts the turn."""
    return aborting(translated(error, doing, otherwise=TurnAborted))


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """Raises the engine's exception in place of a vendor's one."""
    try:
        yield
    except KafkaException as error:
        raise translated(error.args[0], doing) from error
