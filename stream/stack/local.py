"""`riskstream stack up|down|status`: a detached Kafka and Redis, remembered in a file."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stream.errors import ConfigError, UnavailableError
from stream.stack.cache import cache_folder, exclusive
from stream.stack.kafka import ApacheKafka, EmbeddedKafka
from stream.stack.process import LocalServer, ProcessId, is_free, process_id, terminate
from stream.stack.redis import EmbeddedRedis, RedisLike, RedisServer

KAFKA_KINDS: Mapping[str, type[LocalServer]] = {"apache": ApacheKafka, "embedded": EmbeddedKafka}
REDIS_KINDS: Mapping[str, type[LocalServer]] = {"server": RedisServer, "embedded": EmbeddedRedis}
_KINDS = {"kafka": KAFKA_KINDS, "redis": REDIS_KINDS}


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One server of a stack as the file remembers it."""

    role: str  # "kafka" or "redis"
    kind: str  # a key of KAFKA_KINDS or REDIS_KINDS
    pid: int
    started: int  # ticks since boot: with the boot id, a reused pid is never taken for the server
    boot_id: str
    ports: Mapping[str, int]
    address: str
    data: str
    log: str

    @property
    def process(self) -> ProcessId | None:
        """The running process, if it still is the one that was started."""
        known = ProcessId(self.pid, self.started)
        return known if self.boot_id == _boot_id() and process_id(self.pid) == known else None


@dataclass(frozen=True, slots=True)
class StackStatus:
    """What a stack consists of now."""

    name: str
    servers: tuple[ServerRecord, ...]

    def address(self, role: str) -> str | None:
        """Bootstrap servers of "kafka", URL of "redis"; None if that server does not run."""
        return next((s.address for s in self.servers if s.role == role and s.process is not None), None)

    @property
    def running(self) -> bool:
        """Whether both servers run."""
        return all(self.address(role) is not None for role in _KINDS)


class LocalStack:
    """Detached local servers: they go on after this process and are found again by the stack's name."""

    def __init__(self, name: str = "default", *, cache: Path | None = None) -> None:
        self.name = name
        self.folder = (cache or cache_folder()) / "stack" / name
        self._file = self.folder / "stack.json"
        self._lock = self.folder.with_name(f"{name}.lock")

    def up(self, kafka: str = "embedded", redis: str | None = None) -> StackStatus:
        """Starts what does not run yet and blocks until both servers are ready.

        `redis` None: the installed redis-server, else the embedded one. A server that died comes back
        with its data, and on its ports if they are still free. ConfigError: an unknown kind, another
        kind runs, or something is not installed. UnavailableError: a server did not start.
        """
        wanted = {"kafka": kafka, "redis": redis}
        for role, kind in wanted.items():
            if kind is not None and kind not in _KINDS[role]:
                raise ConfigError(f"{role}: {kind!r} is not one of {', '.join(_KINDS[role])}")
        with exclusive(self._lock):
            known = {record.role: record for record in self.status().servers}
            for role, kind in wanted.items():
                self._check_same_kind(known.get(role), kind)
            launched: dict[str, tuple[str, LocalServer]] = {}
            try:
                # All are launched, and remembered, before any is waited for: they start in parallel, and
                # `down` finds them even if this process dies here.
                for role, kind in wanted.items():
                    record = known.get(role)
                    if record is None or record.process is None:
                        chosen = kind or (record.kind if record else _default_redis())
                        launched[role] = (chosen, self._launch(role, chosen, record))
                        if launched[role][1].process is not None:
                            known[role] = _record(role, *launched[role])
                            self._save(known)
                for role, (chosen, server) in launched.items():
                    server.wait_ready()
                    known[role] = _record(role, chosen, server)
            except BaseException:
                for _, server in launched.values():
                    server.stop()
                raise
            self._save(known)
            for record in known.values():
                _wait_for_answer(record)
        return self.status()

    def down(self, *, wipe: bool = False, grace_s: float = 10.0) -> tuple[ServerRecord, ...]:
        """Ends the servers and returns those that had run. Blocks. With `wipe`, deletes their data too.

        Without it, the next `up` finds the data again, on the same ports.
        """
        with exclusive(self._lock):
            records = self.status().servers
            ended = tuple(
                record for record in records if record.process is not None and terminate(record.process, grace_s)
            )
            if wipe:
                shutil.rmtree(self.folder, ignore_errors=True)
            return ended

    def status(self) -> StackStatus:
        """What the file remembers; each record says whether its process runs. Does not block."""
        with contextlib.suppress(FileNotFoundError):
            return StackStatus(self.name, tuple(ServerRecord(**entry) for entry in json.loads(self._file.read_text())))
        return StackStatus(self.name, ())

    def _check_same_kind(self, record: ServerRecord | None, kind: str | None) -> None:
        if record is not None and record.process is not None and kind not in (None, record.kind):
            raise ConfigError(
                f"stack {self.name!r} runs {record.role} as {record.kind!r}, not {kind!r}: "
                f"end it first (riskstream stack down), or use another stack name"
            )

    def _launch(self, role: str, kind: str, record: ServerRecord | None) -> LocalServer:
        # Another kind has data of its own, and so a folder of its own.
        server = _KINDS[role][kind](self.folder / f"{role}-{kind}", detached=True)
        if isinstance(server, RedisLike):
            server.append_only = True  # or a server that died would come back empty
        if record is not None and record.kind == kind and all(map(is_free, record.ports.values())):
            server.ports.update(record.ports)
        server.launch()
        return server

    def _save(self, records: Mapping[str, ServerRecord]) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps([asdict(record) for record in records.values()], indent=2) + "\n")
        part.replace(self._file)


def _default_redis() -> str:
    return "server" if RedisServer.missing() is None else "embedded"


def _record(role: str, kind: str, server: LocalServer) -> ServerRecord:
    process = server.process
    if process is None:
        raise UnavailableError(f"{server.kind} has just ended; see {server.log_path}")
    return ServerRecord(
        role=role,
        kind=kind,
        pid=process.pid,
        started=process.started,
        boot_id=_boot_id(),
        ports=server.ports,
        address=server.address,
        data=str(server.data),
        log=str(server.log_path),
    )


def _wait_for_answer(record: ServerRecord, timeout_s: float = 60.0) -> None:
    """A server that an interrupted `up` launched may still be on its way."""
    server = _KINDS[record.role][record.kind](Path(record.data), ports=record.ports)
    deadline = time.monotonic() + timeout_s
    while not server.answers():
        if record.process is None or time.monotonic() > deadline:
            raise UnavailableError(f"{server.kind} does not answer on {record.address}; see {record.log}")
        time.sleep(0.05)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
