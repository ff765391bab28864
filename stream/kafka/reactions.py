"""What a refusal or a failure of Kafka demands, and what to tell the operator: the same whatever the client.

The clients' own errors.py say which of their errors is which.
"""

from __future__ import annotations

from typing import NamedTuple

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

_LISTED = "`riskstream rights` lists what is needed"


class Reaction(NamedTuple):
    """The exception to raise, and the end of its text."""

    error: type[RiskstreamError]
    remedy: str


FENCED = Reaction(FencedError, "another worker runs with the same kafka.worker_id, or has fenced this one")
CERTIFICATE = Reaction(CertificateError, "restarting does not cure it")
CREDENTIALS = Reaction(CredentialsError, "check kafka.sasl_username, kafka.sasl_password and kafka.sasl_mechanism")
TOPIC_RIGHT = Reaction(
    NotAuthorisedError, f"the user of kafka.sasl_username lacks a right on a topic of topics.*; {_LISTED}"
)
GROUP_RIGHT = Reaction(
    NotAuthorisedError, f"the user of kafka.sasl_username lacks the right Read on the group kafka.group; {_LISTED}"
)
TRANSACTIONAL_RIGHT = Reaction(
    NotAuthorisedError,
    "the user of kafka.sasl_username lacks the right Write on the transactional ids that begin with kafka.group and a "
    f"dash; {_LISTED}",
)
OTHER_RIGHT = Reaction(NotAuthorisedError, f"the user of kafka.sasl_username lacks a right; {_LISTED}")
NO_TOPIC = Reaction(TopicError, "create the topic: riskstream topics create")
LOG_TRUNCATED = Reaction(
    LogTruncatedError,
    "the log no longer holds the next offset: retention dropped it before it was read. Keep records longer; "
    "state.on_truncated_log=continue goes on without what is gone, with flagged scores",
)
PARTITION_LOST = Reaction(PartitionLostError, "the group has given the partitions to somebody else")
RECORD_REFUSED = Reaction(
    FatalError, "the topic refuses this record; check its max.message.bytes and message.timestamp.* settings"
)
SETTING_REFUSED = Reaction(ConfigError, "the broker or the client refuses a setting")
TOO_OLD = Reaction(FatalError, "riskstream needs Kafka 2.5 or newer")
AWAY = Reaction(UnavailableError, "Kafka does not answer")


def aborting(error: RiskstreamError) -> RiskstreamError:
    """For a failure inside a transaction: waiting would not help, so the turn is aborted."""
    return TurnAborted(str(error)) if isinstance(error, UnavailableError) else error
