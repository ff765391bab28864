"""The demo's own processes: workers and the training. They end with the demo, whatever ends that."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from stream.config import ENV_FILE_VARIABLE, ENV_PREFIX, OTHER_VARIABLES
from stream.errors import UnavailableError
from stream.stack.process import HOST, LocalServer

_PROBE_TIMEOUT_S = 1.0
_STOP_GRACE_S = 20.0
_INHERITED = OTHER_VARIABLES - {ENV_FILE_VARIABLE}
_PORT = re.compile(r'"http_port": (\d+)')
_COUNTED = re.compile(rb'^riskstream_events_total\{outcome="(\w+)",partition="\d+"\} (\S+)$', re.MULTILINE)


class Child(LocalServer):
    """`riskstream ARGUMENTS` as a child process with a log file of its own."""

    kind: ClassVar[str] = "riskstream"
    port_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, data: Path, arguments: Sequence[str]) -> None:
        super().__init__(data)
        self.arguments = list(arguments)
        self.exit_code: int | None = None

    @property
    def address(self) -> str:
        return ""

    def answers(self) -> bool:
        return True

    def has_ended(self) -> bool:
        """Whether the process is gone; then `exit_code` says how it ended."""
        if self._process is None:
            return True
        self.exit_code = self._process.poll()
        return self.exit_code is not None

    def stop(self, grace_s: float = _STOP_GRACE_S) -> None:
        process = self._process
        super().stop(grace_s)
        if process is not None:
            self.exit_code = process.returncode

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        return self._explanation()

    def _command(self) -> Sequence[str | Path]:
        return [*_without_settings(), sys.executable, "-m", "stream.cli", *self.arguments]


class WorkerProcess(Child):
    """One worker. Its health server takes a free port, and its log says which."""

    kind: ClassVar[str] = "a worker"

    def __init__(self, data: Path, settings_file: Path, worker_id: str) -> None:
        super().__init__(data, ["--config", str(settings_file), "run", "--worker-id", worker_id, "--http-port", "0"])
        self.worker_id = worker_id
        self._port: int | None = None

    def is_ready(self) -> bool:
        """Whether it has partitions, and all of them run. UnavailableError if it has ended."""
        self.require_running()
        return self._get("/readyz")[0] == http.client.OK

    def outcomes(self) -> dict[str, int]:
        """Events of this worker by outcome so far; empty if it does not answer."""
        found: dict[str, int] = {}
        for outcome, count in _COUNTED.findall(self._get("/metrics")[1]):
            found[outcome.decode()] = found.get(outcome.decode(), 0) + int(float(count))
        return found

    def require_running(self) -> None:
        """UnavailableError, with the end of its log, if it has ended by itself."""
        if self.has_ended():
            raise UnavailableError(f"{self.worker_id} ended with exit code {self.exit_code}; {self.last_words()}")

    def _get(self, path: str) -> tuple[int, bytes]:
        if self._port is None and (found := _PORT.search(self._last_output())) is not None:
            self._port = int(found[1])
        if self._port is None:
            return 0, b""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=_PROBE_TIMEOUT_S)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        return 0, b""


def _without_settings() -> list[str]:
    """A prefix that hides this process's own settings from a child: the demo's file alone counts."""
    names = [name for name in os.environ if name.startswith(ENV_PREFIX) and name not in _INHERITED]
    return ["/usr/bin/env", *(word for name in names for word in ("-u", name))] if names else []
