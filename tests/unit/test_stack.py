"""Local servers: starting, ending, dying with their parent. A small fake server stands in for the slow ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest

from stream.errors import ConfigError, UnavailableError
from stream.stack import LocalServer, LocalStack, cache_folder, local
from stream.stack import process as process_module
from stream.stack.process import HOST, ProcessId, free_port, is_free, listens_on, process_id, terminate

# Echoes the port it listens on; ignores SIGTERM when asked to.
_SERVER = """
import signal, socket, sys, time
port, stubborn = int(sys.argv[1]), sys.argv[2] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("starting on", port, flush=True)
server = socket.create_server(("127.0.0.1", port), backlog=5)
while True:
    connection, _ = server.accept()
    connection.sendall(b"%d" % port)
    connection.close()
"""


class FakeServer(LocalServer):
    kind: ClassVar[str] = "fake server"
    mode = "plain"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.ports['server']}"

    def answers(self) -> bool:
        port = self.ports["server"]
        with suppress(OSError), socket.create_connection((HOST, port), 1.0) as connection:
            return connection.recv(10) == b"%d" % port
        return False

    def _command(self) -> Sequence[str]:
        if self.mode == "broken":
            return [sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"]
        if self.mode == "silent":
            return [sys.executable, "-c", "import time; print('thinking', flush=True); time.sleep(60)"]
        return [sys.executable, "-c", _SERVER, str(self.ports["server"]), self.mode]


class OtherFakeServer(FakeServer):
    kind: ClassVar[str] = "other fake server"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    made = FakeServer(tmp_path / "data")
    yield made
    made.kill()


def _pid(server: LocalServer) -> int:
    process = server.process
    assert process is not None
    return process.pid


def test_start_waits_until_the_server_answers_and_stop_ends_it(server: FakeServer) -> None:
    server.start()
    assert server.answers()
    first = _pid(server)
    assert listens_on(first, server.ports["server"])
    server.stop()
    assert server.process is None
    assert process_id(first) is None
    assert is_free(server.ports["server"])


def test_a_restart_keeps_the_port_and_the_log(server: FakeServer) -> None:
    server.start()
    ports, first = dict(server.ports), _pid(server)
    server.kill()
    server.start()
    assert server.ports == ports
    assert _pid(server) != first
    assert server.log_path.read_text().count("starting on") == 2


def test_a_second_start_changes_nothing(server: FakeServer) -> None:
    first = _pid(server.start())
    assert _pid(server.start()) == first


def test_a_stubborn_server_is_killed_after_the_grace(server: FakeServer) -> None:
    server.mode = "stubborn"
    server.start()
    started = time.monotonic()
    server.stop(grace_s=0.3)
    assert 0.3 <= time.monotonic() - started < 5
    assert server.process is None


def test_a_failed_start_shows_the_end_of_the_log(server: FakeServer) -> None:
    server.mode = "broken"
    with pytest.raises(UnavailableError, match="no such luck"):
        server.start()


def test_a_server_that_never_answers_is_given_up_and_killed(server: FakeServer) -> None:
    server.mode = "silent"
    with pytest.raises(UnavailableError, match="thinking"):
        server.start(timeout_s=0.5)
    assert server.process is None


def test_a_port_taken_in_the_meantime_is_replaced(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as occupier:
        taken = occupier.getsockname()[1]
        offered = iter([taken, taken])
        monkeypatch.setattr(process_module, "free_port", lambda: next(offered, None) or free_port())
        server.start()
    assert server.ports["server"] != taken
    assert server.answers()


def test_a_fixed_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as occupier:
        taken = occupier.getsockname()[1]
        server = FakeServer(tmp_path, ports={"server": taken})
        with pytest.raises(UnavailableError, match="in use"):
            server.start()
    assert server.ports == {"server": taken}


def test_what_is_missing_is_said_before_anything_starts(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeServer, "missing", classmethod(lambda cls: "install the fake"))
    with pytest.raises(ConfigError, match="install the fake"):
        server.start()
    assert not server.data.exists()


_PARENT = """
import sys, threading, time
from pathlib import Path
from tests.unit.test_stack import FakeServer
server = FakeServer(Path(sys.argv[1]), detached=sys.argv[2] == "detached")
# From a thread that ends at once: the server must live as long as the process.
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
time.sleep(0.3)
assert server.answers()
print(server.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_dies_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    parent, pid = _parent(tmp_path, "attached")
    parent.send_signal(how)
    parent.wait()
    deadline = time.monotonic() + 5
    while process_id(pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_detached_server_outlives_its_parent(tmp_path: Path) -> None:
    parent, pid = _parent(tmp_path, "detached")
    parent.kill()
    parent.wait()
    time.sleep(0.2)
    process = process_id(pid)
    assert process is not None
    assert terminate(process, grace_s=5)


def _parent(data: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(data), how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        return parent, int(parent.stdout.readline())


def test_terminate_spares_a_process_that_took_over_the_pid() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = process_id(child.pid)
    assert process is not None
    assert terminate(ProcessId(process.pid, process.started - 1), grace_s=0) is False
    assert child.poll() is None
    assert terminate(process, grace_s=5) is True
    child.wait()
    assert terminate(process, grace_s=0) is False


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStack]:
    kinds = {"embedded": FakeServer, "apache": OtherFakeServer, "server": FakeServer}
    monkeypatch.setattr(local, "_KINDS", {"kafka": kinds, "redis": kinds})
    made = LocalStack("test", cache=tmp_path)
    yield made
    made.down(grace_s=1)


def test_up_is_idempotent_and_down_ends_everything(stack: LocalStack) -> None:
    assert not stack.status().running
    up = stack.up()
    assert up.running
    assert stack.up() == up
    assert LocalStack("test", cache=stack.folder.parents[1]).status() == up
    assert {record.role for record in stack.down()} == {"kafka", "redis"}
    assert not stack.status().running
    assert stack.down() == ()


def test_up_brings_back_only_what_has_died(stack: LocalStack) -> None:
    before = {record.role: record for record in stack.up().servers}
    os.kill(before["kafka"].pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while stack.status().running:
        assert time.monotonic() < deadline
    after = {record.role: record for record in stack.up().servers}
    assert after["redis"] == before["redis"]
    assert after["kafka"].pid != before["kafka"].pid
    assert after["kafka"].address == before["kafka"].address


def test_another_kind_is_refused_while_one_runs(stack: LocalStack) -> None:
    stack.up("embedded")
    with pytest.raises(ConfigError, match="stack down"):
        stack.up("apache")
    stack.down()
    kinds = {record.role: record.kind for record in stack.up("apache").servers}
    assert kinds["kafka"] == "apache"
    with pytest.raises(ConfigError, match="not one of"):
        stack.up("rabbit")


def test_a_failed_up_leaves_nothing_running(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OtherFakeServer, "mode", "broken")
    with pytest.raises(UnavailableError, match="no such luck"):
        stack.up("apache")
    assert not any(record.process for record in stack.status().servers)


def test_records_of_an_earlier_boot_are_never_killed(stack: LocalStack) -> None:
    stack.up()
    file = stack.folder / "stack.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**entry, "boot_id": "another"} for entry in entries]))
    assert not stack.status().running
    assert stack.down() == ()
    file.write_text(json.dumps(entries))
    assert len(stack.down(wipe=True)) == 2
    assert not stack.folder.exists()


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RISKSTREAM_CACHE")
    assert cache_folder() == Path(__file__).parents[2] / ".cache"
