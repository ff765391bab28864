"""What Redis and its client raise, as the reaction that it demands."""

from __future__ import annotations

import re

from redis import exceptions

from stream.errors import (
    CertificateError,
    CredentialsError,
    FatalError,
    NotAuthorisedError,
    RiskstreamError,
    UnavailableError,
)
from stream.state.redis_scripts import TEXT_BY_SHA
from stream.tls import REDIS_TLS, tls_problem

_WRONG_PASSWORD = (exceptions.AuthenticationError, exceptions.AuthenticationWrongNumberOfArgsError)
_REFUSED = (exceptions.AuthorizationError, exceptions.NoPermissionError)
_CUT_OFF = "EOF occurred in violation of protocol"
_REFUSED_INSIDE_A_SCRIPT = ("NOPERM", "can't access at least one of the keys", "can't run this command")
_AWAY_FOR_A_WHILE = (exceptions.ClusterDownError, exceptions.TryAgainError)
_AWAY_FOR_A_WHILE_CODES = ("MISCONF", "BUSY ", "NOREPLICAS", "UNKILLABLE")
"""Codes that the client does not know; it leaves them in the text."""


def translate(error: Exception, key_prefix: bytes) -> RiskstreamError:
    """The error to raise instead. Its text holds no URL, no password and no row."""
    return _refused(error, key_prefix) or _otherwise(error)


def _refused(error: Exception, key_prefix: bytes) -> RiskstreamError | None:
    """What restarting cannot cure: the right, the password or the certificate; None if it is something else."""
    text = str(error)
    # A missing right inside a script comes as a mere error of the script.
    if isinstance(error, _REFUSED) or any(word in text for word in _REFUSED_INSIDE_A_SCRIPT):
        return NotAuthorisedError(
            f"Redis refused a right ({text}){_needs_of_script(text)}: give the user of redis.url its commands on "
            f"~{key_prefix.decode()}*; `riskstream rights` lists them"
        )
    if isinstance(error, _WRONG_PASSWORD) or "NOAUTH" in text:
        return CredentialsError(f"Redis refused the user or the password of redis.url ({text}): correct them there")
    if (problem := tls_problem(error, REDIS_TLS)) is not None:
        return CertificateError(f"connecting to Redis: {problem}")
    return None


def _needs_of_script(text: str) -> str:
    """Redis names the script that was refused a command, and not the command."""
    names = [re.findall(r"redis\.call\('(\w+)'", script) for sha, script in TEXT_BY_SHA.items() if sha in text]
    return f", this script needs {', '.join(dict.fromkeys(names[0]))}" if names else ""


def _otherwise(error: Exception) -> RiskstreamError:
    text = str(error)
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
        asked = "; does it ask for a certificate (redis.ssl_cert_file)?" if _CUT_OFF in text else ""
        return UnavailableError(f"Redis does not answer ({text}): check redis.url, the network, and the server{asked}")
    if isinstance(error, _AWAY_FOR_A_WHILE) or any(code in text for code in _AWAY_FOR_A_WHILE_CODES):
        return UnavailableError(f"Redis refuses commands for now ({text})")
    return FatalError(f"Redis refused a command ({text}): is redis.url a Redis or Valkey server, version 6 or later?")
