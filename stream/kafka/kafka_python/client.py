"""The factory of kafka-python clients."""

from __future__ import annotations

from collections.abc import Mapping

from stream.config import KafkaSettings
from stream.kafka.kafka_python.admin import KafkaPythonAdmin
from stream.kafka.kafka_python.connection import KnownTopics
from stream.kafka.kafka_python.consumer import KafkaPythonConsumer, KafkaPythonReader
from stream.kafka.kafka_python.producer import KafkaPythonPlainProducer, KafkaPythonProducer
from stream.kafka.kafka_python.vendor_log import quieten_vendor_log
from stream.kafka.port import Consumer, PlainProducer, Producer, Reader


class KafkaPythonClient:
    """One set of settings; every object made here has a connection of its own.

    Making one blocks until a broker answers: UnavailableError after `request_timeout_ms`,
    NotAuthorisedError when the credentials are refused.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._topics = KnownTopics(self._partition_counts)
        quieten_vendor_log()

    def consumer(self) -> Consumer:
        return KafkaPythonConsumer(self._settings, self._topics)

    def producer(self, transactional_id: str) -> Producer:
        return KafkaPythonProducer(self._settings, self._topics, transactional_id)

    def plain_producer(self) -> PlainProducer:
        return KafkaPythonPlainProducer(self._settings, self._topics)

    def reader(self) -> Reader:
        return KafkaPythonReader(self._settings, self._topics)

    def admin(self) -> KafkaPythonAdmin:
        return KafkaPythonAdmin(self._settings)

    def _partition_counts(self, topics: list[str]) -> Mapping[str, int]:
        admin = self.admin()
        try:
            return admin.partition_counts(topics)
        finally:
            admin.close()
