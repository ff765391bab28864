"""Every exception of the engine, named by the reaction that it demands.

RiskstreamError
├── ConfigError              the operator corrects a setting, then starts again       exit 2
├── FatalError               restarting cannot cure it; a person must act             exit by class
│   ├── FencedError          another worker has taken this one's identity             exit 10
│   ├── NotAuthorisedError   Kafka or Redis refuses a right                           exit 11
│   │   └── CredentialsError Kafka or Redis refuses the user or the password          exit 17
│   ├── CertificateError     TLS: a certificate is expired, unknown or refused        exit 18
│   ├── TopicError           a topic is missing, or the partition counts disagree     exit 12
│   ├── CheckpointAheadError the group's offsets were moved back behind the state     exit 13
│   ├── LogTruncatedError    retention dropped events that the state still needs      exit 14
│   └── DeadLetterError      a dead letter cannot be written; nothing may be dropped  exit 15
├── TurnAborted              abort the transaction, drop the rows, restore            stay
│   ├── StateLostError       the store no longer holds the checkpoint it acknowledged stay
│   └── PartitionLostError   the group gave this partition to somebody else           stay
├── UnavailableError         the other side is away: wait, by policy                  stay
├── ScoringFailed            use the previous model; with none, rules only, flagged   stay
└── BundleRefused            keep the bundle that runs; tell the operator             stay (exit 16 at start)
"""

from __future__ import annotations


class RiskstreamError(Exception):
    """Base of all. The message says what happened and what to do about it."""

    exit_code = 1


class ConfigError(RiskstreamError):
    """A setting is wrong. The message names the field and the allowed values."""

    exit_code = 2


class FatalError(RiskstreamError):
    """Restarting would meet the same failure. The process ends with the class's exit code."""

    exit_code = 9


class FencedError(FatalError):
    """Another producer took over this transactional id, or another member this worker id."""

    exit_code = 10


class NotAuthorisedError(FatalError):
    """Kafka or Redis refused a right. The message names the right, or the setting of what it is for."""

    exit_code = 11


class CredentialsError(NotAuthorisedError):
    """Kafka or Redis refused the user or the password. The message names the settings."""

    exit_code = 17


class CertificateError(FatalError):
    """TLS failed: a certificate has expired, is of an unknown CA or another host, or is refused."""

    exit_code = 18


class TopicError(FatalError):
    """A topic is missing, or the inputs are not co-partitioned."""

    exit_code = 12


class CheckpointAheadError(FatalError):
    """The checkpoint in the store is ahead of the committed offset (W > C)."""

    exit_code = 13


class LogTruncatedError(FatalError):
    """The log's first offset is past the checkpoint: part of [W, C) is gone."""

    exit_code = 14


class DeadLetterError(FatalError):
    """A dead letter could not be written. The engine stops rather than drop an event."""

    exit_code = 15


class TurnAborted(RiskstreamError):
    """This turn's transaction did not commit. Drop the rows of the partitions and restore them."""


class StateLostError(TurnAborted):
    """The store's checkpoint is not the one that this worker wrote: the store lost data."""


class PartitionLostError(TurnAborted):
    """The partition was taken away while a turn was under way."""


class UnavailableError(RiskstreamError):
    """Kafka or Redis does not answer now. Raised after the client's own retries."""


class ScoringFailed(RiskstreamError):
    """The model raised, or gave a value that is not finite. The message names the model, never an event."""


class BundleRefused(RiskstreamError):
    """A bundle did not verify. The message names the file or the check."""

    exit_code = 16
