"""kafka-python's exceptions, translated into the engine's: named by the reaction that they demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import kafka.errors as vendor

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


class TlsRefused(vendor.KafkaError):  # type: ignore[misc]  # the vendor has no types
    """A TLS handshake failed for a reason that trying again does not cure. The text says which."""


# The first row that fits decides: a class comes before its bases.
_TABLE: tuple[tuple[tuple[type[Exception], ...], type[RiskstreamError], str], ...] = (
    (
        (vendor.ProducerFencedError, vendor.InvalidProducerEpochError, vendor.FencedInstanceIdError),
        FencedError,
        "another worker runs with the same kafka.worker_id, or has fenced this one",
    ),
    ((TlsRefused,), CertificateError, remedies.CERTIFICATE),
    (
        (vendor.SaslAuthenticationFailedError, vendor.UnsupportedSaslMechanismError),
        CredentialsError,
        remedies.CREDENTIALS,
    ),
    ((vendor.TopicAuthorizationFailedError,), NotAuthorisedError, remedies.TOPIC_RIGHT),
    ((vendor.GroupAuthorizationFailedError,), NotAuthorisedError, remedies.GROUP_RIGHT),
    ((vendor.TransactionalIdAuthorizationFailedError,), NotAuthorisedError, remedies.TRANSACTIONAL_RIGHT),
    ((vendor.AuthorizationError,), NotAuthorisedError, remedies.OTHER_RIGHT),
    (
        (vendor.UnknownTopicOrPartitionError, vendor.InvalidTopicError, vendor.UnknownTopicIdError),
        TopicError,
        "create the topic: riskstream topics create",
    ),
    (
        (vendor.OffsetOutOfRangeError, vendor.LogTruncationError),
        LogTruncatedError,
        remedies.LOG_TRUNCATED,
    ),
    (
        (
            vendor.CommitFailedError,
            vendor.IllegalGenerationError,
            vendor.UnknownMemberIdError,
            vendor.RebalanceInProgressError,
        ),
        PartitionLostError,
        "the group has given the partitions to somebody else",
    ),
    (
        (vendor.MessageSizeTooLargeError, vendor.RecordListTooLargeError, vendor.InvalidTimestampError),
        FatalError,
        "the topic refuses this record; check its max.message.bytes and message.timestamp.* settings",
    ),
    (
        (
            vendor.KafkaConfigurationError,
            vendor.InvalidSessionTimeoutError,
            vendor.InvalidTransactionTimeoutError,
            vendor.InvalidReplicationFactorError,
            vendor.InvalidPartitionsError,
            vendor.InvalidConfigurationError,
            vendor.InvalidGroupIdError,
            vendor.PolicyViolationError,
        ),
        ConfigError,
        "the broker or the client refuses a setting",
    ),
    ((vendor.UnsupportedVersionError,), FatalError, "riskstream needs Kafka 2.5 or newer"),
    ((vendor.RetriableError,), UnavailableError, "Kafka does not answer"),
)


def translated(error: Exception, doing: str, *, otherwise: type[RiskstreamError] = UnavailableError) -> RiskstreamError:
    """The engine's exception for a vendor's one; `otherwise` where no rule fits."""
    for kinds, result, remedy in _TABLE:
        if isinstance(error, kinds):
            return result(f"{doing}: {_named(error)}: {remedy}")
    return otherwise(f"{doing}: {_named(error)}")


def in_transaction(error: Exception, doing: str) -> RiskstreamError:
    """As `translated`, for a failure inside a transaction: what is not fatal aborts the turn."""
    result = translated(error, doing, otherwise=TurnAborted)
    return TurnAborted(str(result)) if isinstance(result, UnavailableError) else result


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """Raises the engine's exception in place of a vendor's one."""
    try:
        yield
    except vendor.KafkaError as error:
        raise translated(error, doing) from error


def _named(error: Exception) -> str:
    # The class says more than the text: brokers send the bare code.
    return f"{type(error).__name__} {error}".strip()
