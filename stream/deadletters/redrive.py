"""Sending dead letters again: the raw bytes, or corrected ones, to where the message came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream.config import BatchSettings
from stream.deadletters.letter import Letter, Place
from stream.events.decoder import Decoder
from stream.events.rejects import Reject
from stream.features.spec import Domain
from stream.kafka.headers import REDRIVEN, redriven_header
from stream.kafka.port import PlainProducer

Validate = Callable[[bytes | None, bool], tuple[dict[str, Any] | None, Reject | None]]


@dataclass(frozen=True, slots=True)
class Planned:
    """One message that would be sent. `partition` None: by its key."""

    letter: Letter
    value: bytes | None
    key: bytes | None
    partition: int | None
    corrected: bool
    refusal: Reject | None
    """Why it would be a dead letter once more; None if it is valid now."""
    keyed_by_account: bool
    """False where key and account differ: the account's events would lie in two partitions."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    value: bytes | None
    timestamp: int


class Redriver:
    """Plans and sends. The workers validate again; the plan tells beforehand what they will say."""

    def __init__(
        self, domain: Domain, limits: BatchSettings, *, transactions: str, labels: str, partitions: Mapping[str, int]
    ) -> None:
        """`partitions`: of both inputs."""
        self._account_field, self._partitions = domain.account_field, partitions
        self._decoders = {
            transactions: Decoder(domain.event, limits, time_field=domain.time_field),
            labels: Decoder(domain.label, limits, time_field=domain.time_field),
        }

    def plan(self, letters: Sequence[Letter], corrections: Mapping[Place, bytes], now_ms: int) -> list[Planned]:
        """What would be sent, in the order of the letters. Letters of topics that are no inputs are left out."""
        return [
            self._planned(letter, corrections, now_ms) for letter in letters if letter.origin.topic in self._decoders
        ]

    def _planned(self, letter: Letter, corrections: Mapping[Place, bytes], now_ms: int) -> Planned:
        origin, corrected = letter.origin, letter.origin in corrections
        value = corrections[origin] if corrected else letter.value
        decoded = self._decoders[origin.topic].decode([_Arrival(value, now_ms)])
        account = decoded.events[0][self._account_field].encode() if decoded.events else None
        key, partition = letter.key, origin.partition if origin.partition < self._partitions[origin.topic] else None
        if corrected and account is not None and account != key:
            # The correction says whose event it is: it belongs where that account's other events lie.
            key, partition = account, None
        refusal = decoded.rejects[0] if decoded.rejects else None
        return Planned(letter, value, key, partition, corrected, refusal, account is None or account == key)


def send(planned: Sequence[Planned], producer: PlainProducer) -> int:
    """Sends all and waits for Kafka's acknowledgements; returns how many. Blocks.

    Interrupted, some may be sent: the next overview knows which, by their headers.
    """
    for each in planned:
        first = each.letter.first
        # One header of a fixed size, however often a message is redriven.
        headers = [(name, value) for name, value in each.letter.headers if name != REDRIVEN]
        headers.append(redriven_header(*first, each.letter.times + 1))
        topic = each.letter.origin.topic
        producer.produce(topic, each.value, key=each.key, headers=headers, partition=each.partition)
    producer.flush()
    return len(planned)
