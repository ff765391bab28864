"""kafka-python's exceptions, translated into the engine's: named by the reaction that they demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import kafka.errors as vendor

from stream.errors import RiskstreamError, TurnAborted, UnavailableError
from stream.kafka import reactions
from stream.kafka.reactions import Reaction, aborting


class TlsRefused(vendor.KafkaError):  # type: ignore[misc]  # the vendor has no types
    """A TLS handshake failed for a reason that trying again does not cure. The text says which."""


# The first row that fits decides: a class comes before its bases.
_TABLE: tuple[tuple[tuple[type[Exception], ...], Reaction], ...] = (
    ((vendor.ProducerFencedError, vendor.InvalidProducerEpochError, vendor.FencedInstanceIdError), reactions.FENCED),
    ((TlsRefused,), reactions.CERTIFICATE),
    ((vendor.SaslAuthenticationFailedError, vendor.UnsupportedSaslMechanismError), reactions.CREDENTIALS),
    ((vendor.TopicAuthorizationFailedError,), reactions.TOPIC_RIGHT),
    ((vendor.GroupAuthorizationFailedError,), reactions.GROUP_RIGHT),
    ((vendor.TransactionalIdAuthorizationFailedError,), reactions.TRANSACTIONAL_RIGHT),
    ((vendor.AuthorizationError,), reactions.OTHER_RIGHT),
    (
        (vendor.UnknownTopicOrPartitionError, vendor.InvalidTopicError, vendor.UnknownTopicIdError),
        reactions.NO_TOPIC,
    ),
    ((vendor.OffsetOutOfRangeError, vendor.LogTruncationError), reactions.LOG_TRUNCATED),
    (
        (
            vendor.CommitFailedError,
            vendor.IllegalGenerationError,
            vendor.UnknownMemberIdError,
            vendor.RebalanceInProgressError,
        ),
        reactions.PARTITION_LOST,
    ),
    (
        (vendor.MessageSizeTooLargeError, vendor.RecordListTooLargeError, vendor.InvalidTimestampError),
        reactions.RECORD_REFUSED,
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
        reactions.SETTING_REFUSED,
    ),
    ((vendor.UnsupportedVersionError,), reactions.TOO_OLD),
    ((vendor.RetriableError,), reactions.AWAY),
)


def translated(error: Exception, doing: str, *, otherwise: type[RiskstreamError] = UnavailableError) -> RiskstreamError:
    """The engine's exception for a vendor's one; `otherwise` where no rule fits."""
    for kinds, reaction in _TABLE:
        if isinstance(error, kinds):
            return reaction.error(f"{doing}: {_named(error)}: {reaction.remedy}")
    return otherwise(f"{doing}: {_named(error)}")


def in_transaction(error: Exception, doing: str) -> RiskstreamError:
    """As `translated`, for a failure inside a transaction: what is not fatal aborts the turn."""
    return aborting(translated(error, doing, otherwise=TurnAborted))


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
