"""The worker seen from outside: /metrics for Prometheus, /livez and /readyz for the orchestrator.

A thread of its own with the standard library's server: it must answer while the engine is busy, and it
reads only what `status` gives it.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from stream.config import HttpSettings
from stream.errors import ConfigError

_CONNECTION_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Status:
    """What the engine says of itself. Plain values, safe to make in another thread than the engine's."""

    since_turn_ms: int
    """Since the loop last turned: a turn, a wait for input, or a step of a restore."""
    assigned: int
    """Partitions of the transactions topic that this worker holds."""
    restoring: Mapping[int, int] = field(default_factory=dict)
    """Partition -> events still to replay; empty when every partition runs."""
    waiting_for: str = ""
    """What the engine is held up by ("redis", "kafka"); empty when nothing."""


class HealthServer:
    """Answers in threads of its own between `start` and `stop`. Never blocks the engine.

    /livez: 503 when the loop has not turned for `stalled_after_ms`.
    /readyz: 503 without an assignment, while restoring, while waiting for something outside, or when not live.
    """

    def __init__(self, settings: HttpSettings, registry: CollectorRegistry, status: Callable[[], Status]) -> None:
        self._settings = settings
        self._registry = registry
        self._status = status
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listens, and returns the port. ConfigError when the address cannot be used."""
        host, port = self._settings.host, self._settings.port
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._server = _Server(family, (host, port), self._answer)
        except OSError as error:
            raise ConfigError(
                f"http.host = {host}, http.port = {port}: cannot listen there ({error.strerror}); choose a free port, "
                "or 0 for any"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stops listening; blocks for at most a fraction of a second. Harmless when not started."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def _answer(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return HTTPStatus.OK, content_type, encode(self._registry)
        if path not in {"/livez", "/readyz"}:
            return HTTPStatus.NOT_FOUND, "text/plain", b"/metrics, /livez, /readyz\n"
        status = self._status()
        reason = self._stalled(status)
        if path == "/readyz":
            reason = reason or _not_ready(status)
        body: dict[str, Any] = {"ok": reason is None} | ({} if reason is None else {"reason": reason}) | asdict(status)
        code = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
        return code, "application/json", json.dumps(body).encode() + b"\n"

    def _stalled(self, status: Status) -> str | None:
        limit_ms = self._settings.stalled_after_ms
        if status.since_turn_ms <= limit_ms:
            return None
        return f"the loop has not turned for {status.since_turn_ms} ms (http.stalled_after_ms = {limit_ms})"


def _not_ready(status: Status) -> str | None:
    if status.assigned == 0:
        return "no partition is assigned to this worker"
    if status.restoring:
        left = sum(status.restoring.values())
        return f"restoring {len(status.restoring)} of {status.assigned} partitions, {left} events left"
    if status.waiting_for:
        return f"waiting for {status.waiting_for}"
    return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Without it a stop would wait for the slowest client.
    block_on_close = False

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        answer: Callable[[str, str], tuple[HTTPStatus, str, bytes]],
    ) -> None:
        self.address_family = family
        self.answer = answer
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news, and its address must not be logged."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout: ClassVar[float] = _CONNECTION_TIMEOUT_S
    server_version = "riskstream"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            code, content_type, body = self.server.answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
        except Exception as error:
            # The probe must hear of it, but the text of an unknown error is not for the network.
            code, content_type = HTTPStatus.SERVICE_UNAVAILABLE, "application/json"
            body = json.dumps({"ok": False, "reason": type(error).__name__}).encode() + b"\n"
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: probes come every few seconds, and a client's address must not be logged."""
