"""Servers shared by the tests of one pytest process; under pytest-xdist every process starts its own
(`--dist loadfile` keeps a file, and so its servers, on one process).

A missing server skips the test and says what to install; with CI set in the environment it fails.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from stream.stack import ApacheKafka, EmbeddedKafka, EmbeddedRedis, LocalServer, RedisServer


def require(server: type[LocalServer]) -> None:
    """Skips the test when the server cannot be started here, or fails it in CI."""
    if (reason := server.missing()) is not None:
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(reason)
        pytest.fail(f"in CI nothing may be skipped: {reason}", pytrace=False)


_numbers = itertools.count(1)
ServerT = TypeVar("ServerT", bound=LocalServer)


def _running(server: type[ServerT], data: Path) -> Iterator[ServerT]:
    require(server)
    yield from _until_done(server(data))


def _until_done(server: ServerT) -> Iterator[ServerT]:
    started = server.start()
    yield started
    # The data are thrown away, so nothing is gained by a clean end.
    started.kill()


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Real Apache Kafka, one KRaft node. Tests use topics and groups of their own (`unique`)."""
    require(ApacheKafka)
    # By default the broker looks only every 10 s for transactions that have timed out.
    properties = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000"}
    yield from _until_done(ApacheKafka(tmp_path_factory.mktemp("apache-kafka"), properties=properties))


@pytest.fixture(scope="session")
def embedded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """The embedded broker of the demo."""
    yield from _running(EmbeddedKafka, tmp_path_factory.mktemp("embedded-kafka"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Real redis-server. Tests use a namespace of their own (`unique`) and never flush."""
    yield from _running(RedisServer, tmp_path_factory.mktemp("redis-server"))


@pytest.fixture(scope="session")
def embedded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The embedded Redis-compatible server of the demo."""
    yield from _running(EmbeddedRedis, tmp_path_factory.mktemp("embedded-redis"))


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name that no other test has used on these servers: for topics, groups and namespaces."""
    readable = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())[:60]
    return f"{readable.strip('-')}-{next(_numbers)}"
