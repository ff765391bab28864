"""The factory of confluent-kafka clients."""

from __future__ import annotations

from collections.abc import Mapping

from stream.config import KafkaSettings
from stream.kafka.confluent.consumer import ConfluentConsumer, ConfluentReader
from stream.kafka.confluent.producer import ConfluentPlainProducer, ConfluentProducer
from stream.kafka.kafka_python.admin import KafkaPythonAdmin
from stream.kafka.kafka_python.connection import KnownTopics
from stream.kafka.kafka_python.vendor_log import quieten_vendor_log


class ConfluentClient:
    """One set of settings; every object made here has a connection of its own.

    Questions outside the data path are the other client's: librdkafka's Python binding cannot describe
    transactions, and kafka-python is installed in any case.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._topics = KnownTopics(self._partition_counts)
        quieten_vendor_log()

    def consumer(self) -> ConfluentConsumer:
        return ConfluentConsumer(self._settings, self._topics)

    def producer(self, transactional_id: str) -> ConfluentProducer:
        return ConfluentProducer(self._settings, self._topics, transactional_id)

    def plain_producer(self) -> ConfluentPlainProducer:
        return ConfluentPlainProducer(self._settings, self._topics)

    def reader(self) -> ConfluentReader:
        return ConfluentReader(self._settings, self._topics)

    def admin(self) -> KafkaPythonAdmin:
        return KafkaPythonAdmin(self._settings)

    def _partition_counts(self, topics: list[str]) -> Mapping[str, int]:
        admin = self.admin()
        try:
            return admin.partition_counts(topics)
        finally:
            admin.close()
