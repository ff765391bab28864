"""What every confluent-kafka client of this process is configured with, and how it meets its broker."""

from __future__ import annotations

import logging
import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from stream.config import KafkaSettings
from stream.errors import CertificateError, NotAuthorisedError, UnavailableError
from stream.kafka.confluent.errors import translated

LOGGER = logging.getLogger("riskstream.librdkafka")
# librdkafka tells of every attempt to connect; what matters of it reaches the engine as an exception.
LOGGER.setLevel(logging.CRITICAL)

_REFUSALS = frozenset(
    {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM}
)
_ASK_S = 0.5


class Background:
    """Takes the errors that librdkafka reports apart from any call, such as a refused login."""

    def __init__(self) -> None:
        self.refusal: KafkaError | None = None
        self.fatal: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        if error.code() in _REFUSALS or isinstance(translated(error, ""), CertificateError):
            self.refusal = error
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.fatal = error


def common_options(settings: KafkaSettings, background: Background) -> dict[str, Any]:
    """Options that consumers, readers and producers share."""
    options: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": f"riskstream-{settings.worker_id}",
        "socket.timeout.ms": settings.request_timeout_ms,
        "retry.backoff.ms": settings.retry_backoff_ms,
        # A broker that restarts is met again within a second; the default backs off up to 10 s.
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 60_000,
        "allow.auto.create.topics": False,
        "socket.nagle.disable": True,
        "security.protocol": settings.security_protocol,
        "error_cb": background,
    }
    if settings.security_protocol.startswith("SASL"):
        options["sasl.mechanism"] = settings.sasl_mechanism
        options["sasl.username"] = settings.sasl_username or ""
        if settings.sasl_password is not None:
            options["sasl.password"] = settings.sasl_password.get_secret_value()
    for name, path in (
        ("ssl.ca.location", settings.ssl_ca_file),
        ("ssl.certificate.location", settings.ssl_cert_file),
        ("ssl.key.location", settings.ssl_key_file),
    ):
        if path is not None:
            options[name] = str(path)
    return options


def wait_connected(vendor: Any, settings: KafkaSettings, background: Background) -> None:
    """Blocks until a broker answers: UnavailableError after `request_timeout_ms`.

    NotAuthorisedError or CertificateError when we are refused, or refuse.
    """
    deadline = time.monotonic() + settings.request_timeout_ms / 1000
    while True:
        try:
            # One topic that need not exist: the answer is small however many topics the cluster has.
            vendor.list_topics("riskstream-none", timeout=_ASK_S)
            return
        except KafkaException as error:
            vendor.poll(0)  # runs the error callback
            if background.refusal is not None:
                raise translated(background.refusal, "connecting to Kafka") from None
            refused = translated(error.args[0], "connecting to Kafka")
            if isinstance(refused, NotAuthorisedError | CertificateError):
                raise refused from None
            if time.monotonic() > deadline:
                raise UnavailableError(f"connecting to Kafka: {settings.bootstrap_servers} does not answer") from None
