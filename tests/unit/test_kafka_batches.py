"""Record batches built whole hold what the vendor builds record by record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.producer.future import FutureProduceResult
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from stream.kafka.kafka_python.batches import Delivery, _batch, _bodies, varint
from stream.kafka.port import KeyedValue

_MOST = 4_096
_BYTES = st.none() | st.binary(max_size=300)
_HEADERS = st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=200)), max_size=3)
_MESSAGES = st.lists(st.tuples(_BYTES, _BYTES, _HEADERS), min_size=1, max_size=60)


def _closed(records: MemoryRecordsBuilder) -> bytes:
    records.set_producer_state(7, 1, 40, True)
    records.close()
    return bytes(records.buffer())


@given(messages=_MESSAGES)
def test_the_bytes_are_the_vendors(messages: list[KeyedValue]) -> None:
    left = list(messages)
    for body, count in _bodies(messages, _MOST):
        batch = _batch(("topic", 0), body, count, _MOST)
        now_ms = batch.records._builder._first_timestamp
        slow = MemoryRecordsBuilder(2, 0, 1_000_000)
        for key, value, headers in left[:count]:
            slow.append(now_ms, key, value, list(headers))
        left = left[count:]
        assert batch.record_count == count
        assert _closed(batch.records) == _closed(slow)
    assert left == []


@given(messages=_MESSAGES)
def test_the_vendor_reads_them_as_they_were_meant(messages: list[KeyedValue]) -> None:
    found = []
    for body, count in _bodies(messages, _MOST):
        assert len(body) <= _MOST or count == 1
        for records in MemoryRecords(_closed(_batch(("topic", 0), body, count, _MOST).records)):
            found += [(record.key, record.value, list(record.headers)) for record in records]
    assert found == [(key, value, list(headers)) for key, value, headers in messages]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, b"\x00"), (-1, b"\x01"), (1, b"\x02"), (63, b"\x7e"), (64, b"\x80\x01"), (150, b"\xac\x02")],
)
def test_numbers_have_the_form_of_protocol_buffers(number: int, expected: bytes) -> None:
    assert varint(number) == expected


def test_a_delivery_fails_with_any_part_of_its_batch() -> None:
    whole, first, second = FutureProduceResult(("t", 0)), FutureProduceResult(("t", 0)), FutureProduceResult(("t", 0))
    delivery = Delivery(whole)
    for part in (first, first, second):
        delivery.rebind(part, 0)
    assert whole._latch.is_set()  # who waited for the whole looks again
    first.success((0, -1, None))
    assert delivery.exception is None
    assert not delivery.is_done
    second.failure(ValueError("refused"))
    assert isinstance(delivery.exception, ValueError)


def test_a_delivery_fails_when_the_broker_refuses_a_record() -> None:
    result = FutureProduceResult(("t", 0))
    delivery = Delivery(result)
    result.success((-1, -1, lambda _: ValueError("refused")))
    assert isinstance(delivery.exception, ValueError)
    assert delivery.is_done
