"""The in-memory twin of Kafka: for tests, and for scoring a file without any server."""

from stream.kafka.memory.broker import MemoryBroker
from stream.kafka.memory.client import MemoryKafka
from stream.kafka.memory.log import MemoryRecord

__all__ = ["MemoryBroker", "MemoryKafka", "MemoryRecord"]
