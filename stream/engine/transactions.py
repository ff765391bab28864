"""The worker's transactions: outputs and offsets that become visible together, and transactions of offsets alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from stream.engine.turn import Message
from stream.errors import TurnAborted, UnavailableError
from stream.kafka.port import CommittedOffset, Consumer, Producer, TopicPartition
from stream.metrics import Metrics

Offsets = Mapping[TopicPartition, CommittedOffset]


class Transactions:
    """One at a time. After one that failed nothing can be written before `end_failed`."""

    def __init__(self, producer: Producer, consumer: Consumer, metrics: Metrics, fault: Callable[[str], None]) -> None:
        """`consumer`: the member of the group on whose behalf offsets are committed."""
        self._producer, self._consumer, self._metrics, self._fault = producer, consumer, metrics, fault
        self._failed = False

    @property
    def failed(self) -> bool:
        """Whether a transaction failed and has not been ended yet."""
        return self._failed

    def start(self) -> None:
        """Takes the transactional id: fences a former worker of it, and ends what that one left open."""
        self._producer.init_transactions()

    def publish(self, messages: Iterable[Message], offsets: Offsets) -> None:
        """Outputs and offsets become visible together, or not at all. TurnAborted, UnavailableError: `end_failed`."""
        producer = self._producer
        try:
            with self._metrics.stage("produce"):
                producer.begin()
                for (topic, number), some in _by_partition(messages).items():
                    if number is not None:
                        producer.produce_all(topic, number, [(m.key, m.value, m.headers) for m in some])
                        continue
                    for message in some:
                        producer.produce(topic, message.value, key=message.key, headers=message.headers)
            self._fault("turn:after_produce")
            with self._metrics.stage("commit"), self._metrics.commit_seconds.time():
                producer.send_offsets(offsets, self._consumer.group_metadata())
                self._fault("turn:inside_commit")
                producer.commit()
        except (TurnAborted, UnavailableError):
            self._metrics.aborts.inc()
            self._failed = True
            raise
        self._metrics.commits.inc()

    def commit(self, offsets: Offsets) -> None:
        """A transaction of offsets alone. TurnAborted: the restore that asks for it begins again."""
        self._write(offsets, self._producer.commit)

    def abort(self, offsets: Offsets) -> None:
        """The same, and taken back. TurnAborted as well."""
        self._write(offsets, self._producer.abort)

    def _write(self, offsets: Offsets, end: Callable[[], None]) -> None:
        if self._failed:
            raise TurnAborted("an earlier transaction has not been ended yet")
        try:
            self._producer.begin()
            self._producer.send_offsets(offsets, self._consumer.group_metadata())
            end()
        except (TurnAborted, UnavailableError) as error:
            self._failed = True
            raise TurnAborted(f"the offsets were not written: {error}") from error

    def end_failed(self) -> None:
        """Ends the transaction that failed, if one did. UnavailableError: call again; nothing is taken before."""
        if self._failed:
            self._producer.abort()
            self._failed = False

    def close(self) -> None:
        """Blocks for some seconds at most; what is open then is ended by the successor."""
        self._producer.close()


def _by_partition(messages: Iterable[Message]) -> dict[tuple[str, int | None], list[Message]]:
    """Messages by (topic, partition), in their order."""
    groups: dict[tuple[str, int | None], list[Message]] = defaultdict(list)
    for message in messages:
        groups[message.topic, message.partition].append(message)
    return groups
