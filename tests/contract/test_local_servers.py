"""The real local servers: what a client finds after a crash and a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from stream.stack import ApacheKafka, EmbeddedKafka, EmbeddedRedis, LocalServer, LocalStack, RedisServer
from stream.stack.process import free_port, process_id
from tests.conftest import require
from tests.contract.kafka_clusters import RealCluster, joined, read, values, write


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(RedisServer, marks=pytest.mark.redis),
        pytest.param(EmbeddedRedis, marks=pytest.mark.embedded),
    ],
)
def test_redis_never_evicts_and_keeps_its_rows_over_a_crash(
    kind: type[RedisServer] | type[EmbeddedRedis], tmp_path: Path
) -> None:
    require(kind)
    with kind(tmp_path, append_only=True) as server:
        client = redis.Redis.from_url(server.url)
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.config_set("appendfsync", "always")
        client.set("row", "packed")
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("row")
        server.start()
        assert client.get("row") == b"packed"
        client.close()


@pytest.mark.parametrize(
    ("kind", "is_crash"),
    [
        pytest.param(ApacheKafka, True, marks=pytest.mark.kafka),
        pytest.param(EmbeddedKafka, False, marks=pytest.mark.embedded),
    ],
)
def test_kafka_keeps_its_records_over_a_restart(
    kind: type[ApacheKafka] | type[EmbeddedKafka], is_crash: bool, tmp_path: Path
) -> None:
    require(kind)
    with kind(tmp_path) as server:
        cluster = RealCluster("restart", server.bootstrap)
        topic = cluster.create_topic()
        write(cluster.client(), topic, [b"kept"])
        if is_crash:
            server.kill()
        else:
            server.stop()
        server.start()
        consumer, _ = joined(cluster.client(), [topic])
        assert values(read(consumer, 1)) == [b"kept"]
        cluster.close()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    for kind in (EmbeddedKafka, EmbeddedRedis):
        require(kind)
    made = LocalStack("demo", cache=tmp_path)
    yield made
    made.down()


@pytest.mark.embedded
def test_the_embedded_stack_comes_up_and_goes_down(stack: LocalStack) -> None:
    up = stack.up("embedded", "embedded")
    assert up.running
    client = redis.Redis.from_url(up.address("redis") or "")
    assert client.ping()
    client.close()
    cluster = RealCluster("stack", up.address("kafka") or "")
    assert cluster.client().admin().broker_ids()
    cluster.close()
    ended = stack.down(wipe=True)
    assert len(ended) == 2
    assert all(process_id(record.pid) is None for record in ended)


@pytest.mark.kafka
def test_a_port_that_kafka_cannot_have_is_named_in_its_log(tmp_path: Path, apache_kafka: LocalServer) -> None:
    ports = {"kafka": apache_kafka.ports["kafka"], "controller": free_port()}
    with pytest.raises(Exception, match="Address already in use"):
        ApacheKafka(tmp_path, ports=ports).start()
