"""Kafka's partitioning rule, against the vendor's own implementation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import DefaultPartitioner
from kafka.partitioner import murmur2 as vendor_murmur2

from stream.kafka.partitioner import murmur2, partition_for


@given(st.binary(max_size=70))
def test_murmur2_equals_the_vendors(data: bytes) -> None:
    assert murmur2(data) == vendor_murmur2(data) & 0xFFFFFFFF


# From the tests of Kafka's Java client (signed there).
@pytest.mark.parametrize(("data", "expected"), [(b"21", -973932308), (b"foobar", -790332482), (b"", 275646681)])
def test_murmur2_equals_the_java_clients(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected & 0xFFFFFFFF


class _Cluster:
    def topics(self) -> set[str]:
        return {"topic"}

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(7))

    available_partitions_for_topic = partitions_for_topic


@given(st.binary(max_size=40))
def test_partition_for_equals_the_vendors_partitioner(key: bytes) -> None:
    expected = DefaultPartitioner().partition("topic", key, key, None, None, _Cluster())
    assert partition_for(key, 7) == expected
