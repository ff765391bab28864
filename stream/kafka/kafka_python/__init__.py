"""The default client: kafka-python 3.0 behind the port."""

from stream.kafka.kafka_python.client import KafkaPythonClient

__all__ = ["KafkaPythonClient"]
