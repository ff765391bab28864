"""The factory of confluent-kafka clients."""

from __future__ import annotations

from stream.kafka.confluent.consumer import ConfluentConsumer, ConfluentReader
from stream.kafka.confluent.producer import ConfluentPlainProducer, ConfluentProducer
from stream.kafka.kafka_python.client import KafkaPythonClient


class ConfluentClient(KafkaPythonClient):
    """Likewise, for the data path.

    Questions outside it are kafka-python's: librdkafka's Python binding cannot describe transactions, and the
    other library is installed in any case.
    """

    def consumer(self) -> ConfluentConsumer:
        return ConfluentConsumer(self._settings, self._topics)

    def producer(self, transactional_id: str) -> ConfluentProducer:
        return ConfluentProducer(self._settings, self._topics, transactional_id)

    def plain_producer(self) -> ConfluentPlainProducer:
        return ConfluentPlainProducer(self._settings, self._topics)

    def reader(self) -> ConfluentReader:
        return ConfluentReader(self._settings, self._topics)
