"""What every kafka-python client of this process is configured with, and what it knows of topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import kafka.errors as vendor
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from stream.config import KafkaSettings
from stream.errors import TopicError
from stream.kafka.kafka_python.errors import TlsRefused
from stream.tls import KAFKA_TLS, tls_problem

# A topic that was created a moment ago may not have reached every broker's metadata yet.
_TOPIC_GRACE_S = 3.0


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # the vendor has no types
    """Lets a refused login or certificate be known as such: the vendor goes on trying, and reports a timeout."""

    async def _connect(self, node: Any, conn: Any, *arguments: Any, **options: Any) -> None:
        await super()._connect(node, conn, *arguments, **options)
        error = conn._init_future.exception
        if isinstance(error, (vendor.SaslAuthenticationFailedError, vendor.UnsupportedSaslMechanismError)):
            self._auth_failures[node.node_id] = error
        elif self.ssl_enabled and error is not None and (problem := tls_problem(error, KAFKA_TLS)) is not None:
            self._auth_failures[node.node_id] = TlsRefused(problem)

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        transport = await super()._build_transport(node, timeout_at=timeout_at)
        # What a broker says just before it closes is dropped by the vendor: here, why it refuses the login.
        receive = transport._sock_recv

        def data_before_error() -> tuple[bytes, Exception | None]:
            data, error = receive()
            # The next read meets the closed socket again.
            return data, None if data else error

        transport._sock_recv = data_before_error
        return transport


class _Client(KafkaNetClient):  # type: ignore[misc]
    """The vendor's network client with the manager above."""

    def __init__(self, **options: Any) -> None:
        net = NetworkSelector(**options)
        super().__init__(net=net, manager=_Manager(net, **options))


def common_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options that consumers, producers and admins share."""
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": f"riskstream-{settings.worker_id}",
        "request_timeout_ms": settings.request_timeout_ms,
        "retry_backoff_ms": settings.retry_backoff_ms,
        "bootstrap_timeout_ms": settings.request_timeout_ms,
        # The idle check must lie above the request timeout, or the client refuses to start.
        "connections_max_idle_ms": max(540_000, 2 * settings.request_timeout_ms),
        # A broker that restarts is met again within a second; the default backs off up to 30 s.
        "reconnect_backoff_max_ms": 1_000,
        "security_protocol": settings.security_protocol,
        "metrics_enabled": False,
        "kafka_client": _Client,
    }
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        if settings.sasl_password is not None:
            options["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    for name, path in (
        ("ssl_cafile", settings.ssl_ca_file),
        ("ssl_certfile", settings.ssl_cert_file),
        ("ssl_keyfile", settings.ssl_key_file),
    ):
        if path is not None:
            options[name] = str(path)
    return options


def admin_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of an admin client, which has no switch for its metrics."""
    options = common_options(settings)
    del options["metrics_enabled"]
    return options


class KnownTopics:
    """Which topics exist, asked once: kafka-python itself waits for an unknown topic until it times out."""

    def __init__(self, partition_counts: Callable[[list[str]], Mapping[str, int]]) -> None:
        self._partition_counts = partition_counts
        self._known: dict[str, int] = {}

    def require(self, topic: str, partition: int = 0) -> None:
        """TopicError if the topic lacks this partition. Blocks for a request the first time."""
        if self._known.get(topic, 0) <= partition:
            deadline = time.monotonic() + _TOPIC_GRACE_S
            while True:
                self._known.update(self._partition_counts([topic]))
                if self._known.get(topic, 0) > partition:
                    return
                if time.monotonic() > deadline:
                    raise TopicError(missing_topic(topic, partition, self._known.get(topic, 0)))
                time.sleep(0.1)

    def recheck(self, topics: list[str]) -> None:
        """TopicError if one of them is gone by now. Blocks for a request."""
        present = self._partition_counts(topics)
        self._known.update(present)
        for topic in topics:
            if topic not in present:
                self._known.pop(topic, None)
                raise TopicError(missing_topic(topic, 0, 0))


def missing_topic(topic: str, partition: int, partitions: int) -> str:
    """What to tell the operator when a topic lacks a partition."""
    if partitions == 0:
        return f"topic {topic} does not exist: riskstream topics create"
    return f"topic {topic} has {partitions} partitions, there is no partition {partition}"
