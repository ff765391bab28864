"""Which Kafka client the settings choose. Imports it only then: light commands skip what they don't use."""

from __future__ import annotations

from stream.config import KafkaSettings
from stream.errors import ConfigError
from stream.kafka.port import KafkaClient


def client_of(settings: KafkaSettings) -> KafkaClient:
    """The client that `kafka.client` names. Connects when first used.

    ConfigError when its library is not installed.
    """
    if settings.client == "confluent":
        try:
            from stream.kafka.confluent.client import ConfluentClient  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"kafka.client = confluent: {error}. Install the fast extra (pip install 'riskstream[fast]'), "
                f"or set kafka.client = kafka-python"
            ) from None
        return ConfluentClient(settings)
    from stream.kafka.kafka_python.client import KafkaPythonClient  # noqa: PLC0415

    return KafkaPythonClient(settings)
