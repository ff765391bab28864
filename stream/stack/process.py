"""One local server as a child process: free ports, log file, readiness, a sure end. Linux only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from stream.errors import ConfigError, UnavailableError

HOST = "127.0.0.1"
_POLL_S = 0.02
_TAIL_LINES = 20
_MAX_PORT_ATTEMPTS = 5
_PORT_CLASH = ("already in use", "BindException")

# Runs in a fresh interpreter and becomes the server: the kernel then kills the server when the thread
# that spawned it ends (PR_SET_PDEATHSIG = 1). A preexec_fn would do this in a forked copy of a process
# with threads, which may deadlock. The check of the parent closes the gap before prctl.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

# The kernel counts the *thread* that spawned a child as its parent, so all children come from one
# thread that lives as long as this process.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-spawner")


class ProcessId(NamedTuple):
    """A process, told apart from a later one with the same pid by its start time (ticks since boot)."""

    pid: int
    started: int


def process_id(pid: int) -> ProcessId | None:
    """The identity of a live process; None if there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name stands in parentheses and may itself contain spaces and parentheses.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else ProcessId(pid, int(fields[19]))


def terminate(process: ProcessId, grace_s: float) -> bool:
    """Ends this very process: SIGTERM, then SIGKILL after the grace. Blocks. False if it was gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if process_id(process.pid) != process:
            return False
        with contextlib.suppress(ProcessLookupError):
            if grace_s > 0:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if grace_s <= 0 or not _has_ended(descriptor, grace_s):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                _has_ended(descriptor, 10.0)
        return True
    finally:
        os.close(descriptor)


def _has_ended(pid_descriptor: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(pid_descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def free_port() -> int:
    """A loopback TCP port that nobody listens on now. Another process may take it before the caller does."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


def listens_on(pid: int, port: int) -> bool:
    """Whether the listening socket of this port belongs to the process."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in inodes:
                    return True
    return False


class LocalServer:
    """A server on loopback with a data folder of its own. Subclasses say how to start and to greet it.

    `start` blocks until the server answers in its own protocol. Started again after `stop` or `kill`,
    it keeps its ports and its data. Unless detached, it dies with this process, whatever ends that.
    """

    kind: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]] = ("server",)

    def __init__(self, data: Path, *, ports: Mapping[str, int] | None = None, detached: bool = False) -> None:
        self.data = data.absolute()
        self.detached = detached
        self.ports: dict[str, int] = dict(ports or {})
        self.log_path = self.data / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._attempts_left = 0

    @classmethod
    def missing(cls) -> str | None:
        """What must be installed before this server can start; None if nothing."""
        return None

    def _command(self) -> Sequence[str | Path]:
        """Prepares the data folder for `self.ports` and returns the command line. May block."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server on `self.ports` answers a request of its protocol now."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """What a client's setting takes: bootstrap servers or a URL."""
        raise NotImplementedError

    @property
    def process(self) -> ProcessId | None:
        """The running process; None if it does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return process_id(self._process.pid)

    def start(self, timeout_s: float = 60.0) -> Self:
        """Starts the server and blocks until it is ready.

        ConfigError: something is not installed. UnavailableError: it ended or did not answer in time;
        the message holds its last log lines.
        """
        self.launch()
        self.wait_ready(timeout_s)
        return self

    def launch(self) -> None:
        """Starts the process and does not wait for it; nothing happens if it runs."""
        if self.process is not None:
            return
        if (reason := self.missing()) is not None:
            raise ConfigError(reason)
        self.data.mkdir(parents=True, exist_ok=True)
        self._attempts_left = 0 if self.ports else _MAX_PORT_ATTEMPTS
        self._spawn()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Blocks until the launched server is ready. Errors as for `start`."""
        deadline = time.monotonic() + timeout_s
        while True:
            process = self.process
            if process is None:
                if self._attempts_left <= 0 or not any(sign in self._last_output() for sign in _PORT_CLASH):
                    raise UnavailableError(f"{self.kind} ended while starting; {self._explanation()}")
                self.ports.clear()
                self._spawn()
            elif all(listens_on(process.pid, port) for port in self.ports.values()) and self.answers():
                return
            elif time.monotonic() > deadline:
                self.kill()
                raise UnavailableError(f"{self.kind} was not ready after {timeout_s:.0f} s; {self._explanation()}")
            time.sleep(_POLL_S)

    def stop(self, grace_s: float = 10.0) -> None:
        """Asks the server to end (SIGTERM), kills it after the grace. Blocks; nothing happens if it is gone."""
        if (process := self.process) is not None:
            terminate(process, grace_s)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """Ends the server at once (SIGKILL), as a crash would."""
        self.stop(grace_s=0.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self) -> None:
        self._attempts_left -= 1
        while len(set(self.ports.values())) < len(self.port_names):
            self.ports = {name: free_port() for name in self.port_names}
        command = [os.fspath(part) for part in self._command()]
        if not self.detached:
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            # A session of its own: Ctrl-C on the terminal must reach the workers before the servers.
            self._process = _SPAWNER.submit(
                subprocess.Popen,
                command,
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ).result()

    def _last_output(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _explanation(self) -> str:
        lines = self._last_output().splitlines()[-_TAIL_LINES:]
        return f"the end of {self.log_path}:\n" + ("\n".join(lines) or "(empty)")
