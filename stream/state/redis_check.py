"""What `doctor` and the start ask of a Redis or Valkey server, as findings with remedies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stream.config import RedisSettings
from stream.errors import CertificateError, CredentialsError, NotAuthorisedError, RiskstreamError, UnavailableError
from stream.state.store import Finding

Run = Callable[[Sequence[tuple[Any, ...]]], list[Any]]

_REFUSALS = (
    (CredentialsError, "redis credentials"),
    (CertificateError, "redis certificate"),
    (NotAuthorisedError, "redis rights"),
)
_REMEDIES = {
    "redis": "start the server, or correct redis.url",
    "redis credentials": "correct user and password in redis.url; percent-encode special characters",
    "redis certificate": "correct the setting that the message names, or the server's certificate",
    "redis rights": "`riskstream rights` lists what the user of redis.url needs",
}
_OLDEST_MAJOR = 6
_MEMORY_WARNING = 0.75
_MEMORY_ERROR = 0.95
_MIB = 1_048_576


def examine_server(settings: RedisSettings, key_prefix: bytes, run: Run, probe: tuple[Any, ...]) -> list[Finding]:
    """Asks the server through `run`. Never raises for what it can report. Blocks for a few round trips.

    `probe` is a harmless command of the kind that the engine sends: it shows whether the rights suffice.
    """
    try:
        run([("PING",)])
    except RiskstreamError as error:
        return [_refusal(error)]
    findings = [Finding("redis", "ok", "reachable"), _rights(run, probe, key_prefix)]
    try:
        info = run([("INFO",)])[0]
    except RiskstreamError as error:
        remedy = "allow INFO to the user of redis.url, or check eviction, persistence and memory by hand"
        return [*findings, Finding("redis info", "warning", f"the server's state cannot be read: {error}", remedy)]
    save = _setting(run, "save")
    return [
        *findings,
        _version(info),
        _eviction(info, settings),
        _persistence(info, save, settings),
        _memory(info),
        _cluster(info, run),
        _secret(settings),
    ]


def _refusal(error: RiskstreamError) -> Finding:
    subject = next((name for kind, name in _REFUSALS if isinstance(error, kind)), "redis")
    return Finding(subject, "error", str(error), _REMEDIES[subject])


def _rights(run: Run, probe: tuple[Any, ...], key_prefix: bytes) -> Finding:
    try:
        run([probe])
    except UnavailableError as error:
        return _refusal(error)  # full or away: that says nothing of the rights
    except RiskstreamError as error:
        remedy = f"give the user of redis.url its commands on ~{key_prefix.decode()}*: `riskstream rights` lists them"
        return Finding("redis rights", "error", str(error), remedy)
    return Finding("redis rights", "ok", f"may read, write and run scripts under {key_prefix.decode()}")


def _version(info: Mapping[str, Any]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info.get("redis_version", "0")))
    if int(version.partition(".")[0]) < _OLDEST_MAJOR:
        return Finding("redis version", "error", f"{name} {version}", f"use Redis {_OLDEST_MAJOR} or later, or Valkey")
    return Finding("redis version", "ok", f"{name} {version}")


def _eviction(info: Mapping[str, Any], settings: RedisSettings) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Finding("redis eviction", "ok", "noeviction")
    return Finding(
        "redis eviction",
        "error" if settings.require_noeviction else "warning",
        f"maxmemory-policy is {policy}: a full server would drop rows silently, and scores would be wrong",
        "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration file",
    )


def _persistence(info: Mapping[str, Any], save: str | None, settings: RedisSettings) -> Finding:
    aof = bool(info.get("aof_enabled"))
    if aof and info.get("aof_last_write_status", "ok") != "ok":
        message = "AOF is on, but its last write failed"
        return Finding("redis persistence", "error", message, "free disk space, and read the server's log")
    if aof:
        return Finding("redis persistence", "ok", "AOF")
    if save and info.get("rdb_last_bgsave_status", "ok") != "ok":
        message = "the last RDB snapshot failed; by default the server refuses writes then (MISCONF)"
        return Finding("redis persistence", "error", message, "free disk space or memory, and read the server's log")
    if save:
        message = f"RDB snapshots (save {save}): after a crash the rows since the last snapshot are replayed from Kafka"
        return Finding("redis persistence", "ok", message)
    reason = "cannot be read (CONFIG GET save is refused) and AOF is off" if save is None else "none: no AOF, no RDB"
    return Finding(
        "redis persistence",
        "error" if settings.require_persistence else "warning",
        f"{reason}; after a restart of the server the state is rebuilt from Kafka over the whole horizon",
        "CONFIG SET appendonly yes, and the same in the server's configuration file",
    )


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit == 0:
        message = f"{used / _MIB:.0f} MiB used, no maxmemory: at the machine's limit the kernel ends the server"
        return Finding("redis memory", "warning", message, "set maxmemory below the machine's memory")
    share = used / limit
    message = f"{used / _MIB:.0f} of {limit / _MIB:.0f} MiB used ({share:.0%})"
    if share < _MEMORY_WARNING:
        return Finding("redis memory", "ok", message)
    level = "error" if share >= _MEMORY_ERROR else "warning"
    remedy = "raise maxmemory, or delete the keys of namespaces that are no longer used"
    return Finding("redis memory", level, f"{message}; when full, the server refuses writes and workers wait", remedy)


def _cluster(info: Mapping[str, Any], run: Run) -> Finding:
    if not int(info.get("cluster_enabled", 0)):
        return Finding("redis cluster", "ok", f"a single server, {info.get('connected_slaves', 0)} replicas")
    try:
        answer = run([("CLUSTER INFO",)])[0]
    except RiskstreamError as error:
        return Finding("redis cluster", "warning", f"in cluster mode, size unknown: {error}", "allow CLUSTER INFO")
    shards = int(answer.get("cluster_size", 0))
    if shards == 1:
        return Finding("redis cluster", "ok", "in cluster mode with one shard")
    message = f"a cluster of {shards} shards; riskstream talks to a single server"
    return Finding("redis cluster", "error", message, "give a server (with replicas) or a cluster of one shard")


def _secret(settings: RedisSettings) -> Finding:
    if settings.key_secret == RedisSettings().key_secret:
        message = "redis.key_secret is the default: who reads the key names can test for an account id"
        return Finding("redis key secret", "warning", message, "set redis.key_secret before going live")
    return Finding("redis key secret", "ok", "an own secret")


def _setting(run: Run, name: str) -> str | None:
    """One value of the server's configuration; None where CONFIG is refused, as managed services do."""
    try:
        answer = run([("CONFIG GET", name)])[0]
    except RiskstreamError:
        return None
    values = list(answer.values()) if isinstance(answer, Mapping) else answer[1:]
    value = values[0] if values else ""
    return value.decode() if isinstance(value, bytes) else str(value)
