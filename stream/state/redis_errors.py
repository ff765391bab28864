"""What Redis and its client raise, as the reaction that it demands."""

from __future__ import annotations

from redis import exceptions

from stream.errors import FatalError, NotAuthorisedError, RiskstreamError, UnavailableError

_REFUSED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.AuthenticationWrongNumberOfArgsError,
)
_REFUSED_INSIDE_A_SCRIPT = ("NOPERM", "can't access at least one of the keys", "can't run this command")
_AWAY_FOR_A_WHILE = (exceptions.ClusterDownError, exceptions.TryAgainError)
_AWAY_FOR_A_WHILE_CODES = ("MISCONF", "BUSY ", "NOREPLICAS", "UNKILLABLE")
"""Codes that the client does not know; it leaves them in the text."""


def translate(error: Exception, key_prefix: bytes) -> RiskstreamError:
    """The error to raise instead. Its text holds no URL, no password and no row."""
    text = str(error)
    if isinstance(error, _REFUSED) or any(word in text for word in _REFUSED_INSIDE_A_SCRIPT):
        return NotAuthorisedError(
            f"Redis refused the credentials or a right ({text}): correct the user and password in redis.url, or give "
            f"that user the rights +@read +@write +@scripting +@connection on ~{key_prefix.decode()}*"
        )
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return UnavailableError(
            "Redis is full (maxmemory) and refuses to evict rows, as it must: raise its maxmemory, or delete the keys "
            "of namespaces that are no longer used"
        )
    if isinstance(error, exceptions.BusyLoadingError):
        return UnavailableError("Redis is loading its data set from disk: it answers when it has finished")
    if isinstance(error, exceptions.ReadOnlyError):
        return UnavailableError("redis.url leads to a read-only replica: a failover is under way, or the URL is wrong")
    if isinstance(error, exceptions.AskError | exceptions.ClusterCrossSlotError):
        return FatalError(
            "redis.url leads to one node of a cluster of several: riskstream uses a single server (with replicas)"
        )
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        return UnavailableError(f"Redis does not answer ({text}): check redis.url, the network, and the server")
    if isinstance(error, _AWAY_FOR_A_WHILE) or any(code in text for code in _AWAY_FOR_A_WHILE_CODES):
        return UnavailableError(f"Redis refuses commands for now ({text})")
    return FatalError(f"Redis refused a command ({text}): is redis.url a Redis or Valkey server, version 6 or later?")
