"""Local servers for the demo, the tests and development: Kafka and Redis on loopback."""

from stream.stack.cache import cache_folder
from stream.stack.kafka import ApacheKafka, EmbeddedKafka
from stream.stack.local import KAFKA_KINDS, REDIS_KINDS, LocalStack, ServerRecord, StackStatus
from stream.stack.process import LocalServer
from stream.stack.prometheus import PrometheusServer
from stream.stack.redis import EmbeddedRedis, RedisServer

__all__ = [
    "KAFKA_KINDS",
    "REDIS_KINDS",
    "ApacheKafka",
    "EmbeddedKafka",
    "EmbeddedRedis",
    "LocalServer",
    "LocalStack",
    "PrometheusServer",
    "RedisServer",
    "ServerRecord",
    "StackStatus",
    "cache_folder",
]
