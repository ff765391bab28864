"""Deployments of workers, and the model that they score with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stream.stack import ApacheKafka, RedisServer
from tests.broker.harness import Deployment

Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(
    apache_kafka: ApacheKafka, redis_server: RedisServer, unique: str, tmp_path: Path
) -> Iterator[Deploy]:
    """Makes deployments with their topics; whatever they started ends with the test."""
    made: list[Deployment] = []

    def make(*, partitions: int = 4, topics: bool = True, redis: RedisServer | None = None, **settings: object) -> Deployment:
        name, folder = f"{unique}-{len(made)}", tmp_path / f"deployment-{len(made)}"
        made.append(Deployment(apache_kafka, redis or redis_server, name, folder, partitions=partitions, **settings))
        return made[-1].create_topics() if topics else made[-1]

    yield make
    for deployment in made:
        deployment.close()
