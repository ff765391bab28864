"""The fast client: confluent-kafka (librdkafka) behind the port. Needs the `fast` extra."""

from stream.kafka.confluent.client import ConfluentClient

__all__ = ["ConfluentClient"]
