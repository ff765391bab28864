"""Nothing listens beyond loopback unless told otherwise."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream.stack import ApacheKafka, EmbeddedKafka, EmbeddedRedis, LocalServer, RedisServer
from tests.broker.conftest import Deploy
from tests.conftest import require

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.embedded]
_LISTENING = "0A"


def processes(root: int) -> Iterator[int]:
    """A process and its children."""
    yield root
    for task in Path(f"/proc/{root}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from processes(int(child))


def listening(pid: int) -> dict[int, str]:
    """Port -> address of every TCP socket on which the process or a child of it listens."""
    found = {}
    for each in processes(pid):
        sockets = {link.readlink().name for link in Path(f"/proc/{each}/fd").iterdir() if link.is_symlink()}
        for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
            for line in Path(f"/proc/{each}/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == _LISTENING and f"socket:[{columns[9]}]" in sockets:
                    address, _, port = columns[1].partition(":")
                    found[int(port, 16)] = _readable(family, address)
    return found


def _readable(family: int, address: str) -> str:
    """The kernel writes addresses as words of the machine's byte order."""
    words = [bytes.fromhex(address[place : place + 8])[::-1] for place in range(0, len(address), 8)]
    return socket.inet_ntop(family, b"".join(words)).removeprefix("::ffff:")


def check(pid: int, least: int) -> None:
    found = listening(pid)
    assert len(found) >= least
    assert set(found.values()) <= {"127.0.0.1", "::1"}, found


@pytest.mark.parametrize("kind", [RedisServer, EmbeddedRedis, EmbeddedKafka])
def test_local_servers(kind: type[LocalServer], tmp_path: Path) -> None:
    require(kind)
    with kind(tmp_path) as server:
        process = server.process
        assert process is not None
        check(process.pid, 1)


def test_apache_kafka_and_a_worker_with_default_settings(deploy: Deploy, apache_kafka: ApacheKafka) -> None:
    process = apache_kafka.process
    assert process is not None
    check(process.pid, 2)
    worker = deploy(partitions=1).worker()
    worker.launch()
    worker.wait_ready(300)
    process = worker.process
    assert process is not None
    check(process.pid, 1)


def test_the_check_can_fail(deploy: Deploy) -> None:
    worker = deploy(partitions=1).worker(http__host="0.0.0.0")
    worker.launch()
    worker.wait_ready(300)
    process = worker.process
    assert process is not None
    with pytest.raises(AssertionError):
        check(process.pid, 1)
