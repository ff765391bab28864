"""librdkafka's errors, translated into the engine's: named by the reaction that they demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from stream.errors import (
    CertificateError,
    ConfigError,
    CredentialsError,
    FatalError,
    FencedError,
    LogTruncatedError,
    NotAuthorisedError,
    PartitionLostError,
    RiskstreamError,
    TopicError,
    TurnAborted,
    UnavailableError,
)
from stream.kafka import remedies
from stream.tls import KAFKA_TLS, tls_problem

_TLS = frozenset({KafkaError._SSL, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN})

_TABLE: tuple[tuple[frozenset[int], type[RiskstreamError], str], ...] = (
    (
        frozenset(
            {
                KafkaError.PRODUCER_FENCED,
                KafkaError._FENCED,
                KafkaError.INVALID_PRODUCER_EPOCH,
                KafkaError.FENCED_INSTANCE_ID,
            }
        ),
        FencedError,
        "another worker runs with the same kafka.worker_id, or has fenced this one",
    ),
    (
        frozenset(
            {
                KafkaError.SASL_AUTHENTICATION_FAILED,
                KafkaError.UNSUPPORTED_SASL_MECHANISM,
                KafkaError._AUTHENTICATION,
            }
        ),
        CredentialsError,
        remedies.CREDENTIALS,
    ),
    (frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED}), NotAuthorisedError, remedies.TOPIC_RIGHT),
    (frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED}), NotAuthorisedError, remedies.GROUP_RIGHT),
    (
        frozenset({KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED}),
        NotAuthorisedError,
        remedies.TRANSACTIONAL_RIGHT,
    ),
    (frozenset({KafkaError.CLUSTER_AUTHORIZATION_FAILED}), NotAuthorisedError, remedies.OTHER_RIGHT),
    (
        frozenset(
            {
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError.TOPIC_EXCEPTION,
                KafkaError._UNKNOWN_TOPIC,
                KafkaError._UNKNOWN_PARTITION,
            }
        ),
        TopicError,
        "create the topic: riskstream topics create",
    ),
    (
        frozenset({KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION}),
        LogTruncatedError,
        remedies.LOG_TRUNCATED,
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
        PartitionLostError,
        "the group has given the partitions to somebody else",
    ),
    (
        frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_TIMESTAMP}),
        FatalError,
        "the topic refuses this record; check its max.message.bytes and message.timestamp.* settings",
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
        ConfigError,
        "the broker or the client refuses a setting",
    ),
    (
        frozenset({KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE}),
        FatalError,
        "riskstream needs Kafka 2.5 or newer",
    ),
)


def translated(error: KafkaError, doing: str, *, otherwise: type[RiskstreamError] = UnavailableError) -> Exception:
    """The engine's exception for a vendor's one; `otherwise` where no rule fits."""
    # A fatal error of the consumer carries its cause in words only.
    code = KafkaError.FENCED_INSTANCE_ID if "group.instance.id" in str(error.str()) else error.code()
    if code in _TLS and (problem := tls_problem(Exception(error.str()), KAFKA_TLS)) is not None:
        return CertificateError(f"{doing}: {problem}: {remedies.CERTIFICATE}")
    for codes, result, remedy in _TABLE:
        if code in codes:
            return result(f"{doing}: {error.name()} {error.str()}: {remedy}")
    return otherwise(f"{doing}: {error.name()} {error.str()}")


def in_transaction(error: KafkaError, doing: str) -> Exception:
    """As `translated`, for a failure inside a transaction: what is not fatal aborts the turn."""
    result = translated(error, doing, otherwise=TurnAborted)
    return TurnAborted(str(result)) if isinstance(result, UnavailableError) else result


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """Raises the engine's exception in place of a vendor's one."""
    try:
        yield
    except KafkaException as error:
        raise translated(error.args[0], doing) from error
