"""The worker's HTTP side, asked over a real socket."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from stream.config import HttpSettings
from stream.errors import ConfigError
from stream.health import HealthServer, Status
from stream.metrics import Metrics

RUNNING = Status(since_turn_ms=5, assigned=2)


class Engine:
    """Holds the status that the server reads."""

    def __init__(self) -> None:
        self.status = RUNNING
        self.error: Exception | None = None

    def read(self) -> Status:
        if self.error is not None:
            raise self.error
        return self.status


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def port(engine: Engine, registry: CollectorRegistry) -> Iterator[int]:
    server = HealthServer(HttpSettings(port=0, stalled_after_ms=1_000), registry, engine.read)
    yield server.start()
    server.stop()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def ask_json(port: int, path: str) -> tuple[int, dict[str, Any]]:
    code, content_type, body = ask(port, path)
    assert content_type == "application/json"
    return code, json.loads(body)


def test_a_running_worker_is_live_and_ready(port: int) -> None:
    for path in ("/livez", "/readyz", "/readyz?verbose"):
        assert ask_json(port, path) == (
            200,
            {"ok": True, "since_turn_ms": 5, "assigned": 2, "restoring": {}, "waiting_for": ""},
        )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"assigned": 0}, "no partition is assigned"),
        ({"restoring": {3: 40, 1: 2}}, "restoring 2 of 2 partitions, 42 events left"),
        ({"restoring": {3: 0}}, "restoring 1 of 2 partitions"),
        ({"waiting_for": "redis"}, "waiting for redis"),
    ],
)
def test_a_worker_that_cannot_score_now_is_live_and_not_ready(
    port: int, engine: Engine, changes: dict[str, Any], reason: str
) -> None:
    engine.status = replace(RUNNING, **changes)
    assert ask_json(port, "/livez")[0] == 200
    code, body = ask_json(port, "/readyz")
    assert code == 503
    assert body["ok"] is False
    assert reason in body["reason"]
    engine.status = RUNNING
    assert ask_json(port, "/readyz")[0] == 200


@pytest.mark.parametrize(("since_turn_ms", "expected"), [(1_000, 200), (1_001, 503)])
def test_a_loop_that_does_not_turn_is_neither_live_nor_ready(
    port: int, engine: Engine, since_turn_ms: int, expected: int
) -> None:
    engine.status = replace(RUNNING, since_turn_ms=since_turn_ms)
    for path in ("/livez", "/readyz"):
        code, body = ask_json(port, path)
        assert code == expected
        assert ("http.stalled_after_ms" in body.get("reason", "")) == (expected == 503)


def test_metrics_are_served_in_the_format_asked_for(port: int, registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.count_turn(0, read=3, scored=3, duplicates=0, dead_letters=0)
    code, content_type, body = ask(port, "/metrics")
    assert code == 200
    assert content_type.startswith("text/plain")
    assert b'riskstream_events_total{outcome="scored",partition="0"} 3.0' in body
    code, content_type, body = ask(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_other_paths_and_methods_are_refused(port: int) -> None:
    assert ask(port, "/")[0] == 404
    assert ask(port, "/metrics/../etc/passwd")[0] == 404
    assert ask(port, "/livez", method="POST")[0] == 501
    code, _, body = ask(port, "/livez", method="HEAD")
    assert (code, body) == (200, b"")


def test_a_status_that_fails_is_a_failed_probe_without_its_text(port: int, engine: Engine) -> None:
    engine.error = RuntimeError("account 4111111111111111")
    for path in ("/livez", "/readyz"):
        code, _, body = ask(port, path)
        assert code == 503
        assert b"RuntimeError" in body
        assert b"4111" not in body
    assert ask(port, "/metrics")[0] == 200


def test_nothing_is_logged(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    ask(port, "/livez")
    ask(port, "/nothing")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"\x00\xff\r\n\r\n")
        connection.recv(100)
    assert capfd.readouterr() == ("", "")


def test_a_client_that_says_nothing_holds_up_nobody(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)):
        assert ask(port, "/livez")[0] == 200


def test_a_port_in_use_names_the_setting(port: int, registry: CollectorRegistry, engine: Engine) -> None:
    for settings in (HttpSettings(port=port), HttpSettings(host="no-such-host.invalid")):
        with pytest.raises(ConfigError, match=r"http\.port"):
            HealthServer(settings, registry, engine.read).start()


def test_stop_ends_the_thread_frees_the_port_and_may_be_repeated(registry: CollectorRegistry, engine: Engine) -> None:
    server = HealthServer(HttpSettings(), registry, engine.read)
    server.stop()
    port = server.start()
    with socket.create_connection(("127.0.0.1", port)):
        server.stop()
    server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "health"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    again = HealthServer(HttpSettings(port=port), registry, engine.read)
    assert again.start() == port
    again.stop()


def test_it_listens_on_ipv6_when_asked(registry: CollectorRegistry, engine: Engine) -> None:
    if not socket.has_ipv6:
        return
    server = HealthServer(HttpSettings(host="::1"), registry, engine.read)
    try:
        port = server.start()
    except ConfigError:
        return  # a machine without an IPv6 loopback address
    with socket.create_connection(("::1", port), 5) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b"200" in connection.recv(100)
    server.stop()
