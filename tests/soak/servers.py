"""The servers of a soak, and the harm that can be done to them: a broker with a small disk, a Redis with a replica."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis

from stream.stack import ApacheKafka, RedisServer
from tests.broker.harness import until

_DISK_MB = 4_096
_SYNC_S = 20.0


class SoakKafka(ApacheKafka):
    """A broker whose log folder can be made full: a file system of its own where that may be mounted.

    Elsewhere (no right to mount) the process's limit on file sizes is lowered instead: the broker meets the same
    failing write, with EFBIG for ENOSPC.
    """

    def __init__(self, data: Path, *, disk_mb: int = _DISK_MB) -> None:
        properties = {
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
            "log.segment.bytes": str(16 * 1024 * 1024),
            # Compacted soon, so that a coordinator has read it before it is elected a second time (docs/guarantees.md).
            "offsets.topic.segment.bytes": str(1024 * 1024),
            "log.index.size.max.bytes": str(256 * 1024),
        }
        super().__init__(data, heap_mb=700, properties=properties)
        self._mounted = False
        self._disk_mb = disk_mb

    def mount(self) -> None:
        """Gives the log folder a file system of its own, if this user may. Before the first start."""
        folder = self._log_folder
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._disk_mb}m", "tmpfs", str(folder)]
        self._mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def unmount(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self._log_folder)], check=False)
            self._mounted = False

    def keep_logs(self) -> None:
        """Ends the broker and copies its logs to where they outlive the file system of their own."""
        self.kill()
        if self._mounted:
            unwanted = shutil.ignore_patterns("ballast", "*.index", "*.timeindex")
            shutil.copytree(self._log_folder, self._log_folder.with_name("kept-logs"), ignore=unwanted)

    def fill_disk(self) -> str:
        """Leaves no room for the next write; says how."""
        if self._mounted:
            with (self._log_folder / "ballast").open("wb") as file:
                try:
                    while True:
                        file.write(b"\0" * (1 << 20))
                        file.flush()
                except OSError:
                    return "tmpfs full"
        self._limit_files("1")
        return "file size limit"

    def free_disk(self) -> None:
        if self._mounted:
            (self._log_folder / "ballast").unlink(missing_ok=True)
        else:
            self._limit_files("unlimited")

    def send(self, number: signal.Signals) -> None:
        process = self.process
        if process is not None:
            os.kill(process.pid, number)

    def restart(self) -> None:
        """Starts it again, however long its recovery takes."""
        self.start(timeout_s=120.0)

    def _limit_files(self, size: str) -> None:
        process = self.process
        if process is not None:
            subprocess.run(["prlimit", f"--pid={process.pid}", f"--fsize={size}:unlimited"], check=True)


class SoakRedis:
    """Redis at one address. What answers there may change: a restart with older data, a replica promoted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self.server = RedisServer(folder / "redis-0").start()
        self.port = self.server.ports["redis"]
        self.url = self.server.url
        self._replica: RedisServer | None = None

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=20)

    @property
    def _dump(self) -> Path:
        return self.server.data / "dump.rdb"

    def close(self) -> None:
        for server in (self.server, self._replica):
            if server is not None:
                server.kill()

    def save(self, name: str) -> None:
        """Keeps a snapshot under a name."""
        with self.client as client:
            client.save()
        shutil.copy(self._dump, self._folder / f"{name}.rdb")

    def kill(self) -> None:
        self.server.kill()

    def restart(self, snapshot: str) -> None:
        """Kills it and starts it with what the snapshot holds."""
        self.server.kill()
        shutil.copy(self._folder / f"{snapshot}.rdb", self._dump)
        self.server.start()

    def send(self, number: signal.Signals) -> None:
        process = self.server.process
        assert process is not None
        os.kill(process.pid, number)

    def flush_all(self) -> None:
        with self.client as client:
            client.flushall()

    def fill(self) -> None:
        """From now on it refuses every write, as a full one with noeviction does."""
        with self.client as client:
            client.config_set("maxmemory", 1)

    def empty(self) -> None:
        with self.client as client:
            client.config_set("maxmemory", 0)

    def add_replica(self) -> None:
        """Starts a replica and waits until it has everything."""
        self._number += 1
        self._replica = RedisServer(self._folder / f"redis-{self._number}").start()
        with redis.Redis(port=self._replica.ports["redis"], socket_timeout=20) as client:
            client.replicaof("127.0.0.1", str(self.port))
            until(lambda: client.info("replication")["master_link_status"] == "up", "the replica has synced", _SYNC_S)

    def cut_replica(self) -> None:
        """It hears nothing more of its master."""
        assert self._replica is not None
        with redis.Redis(port=self._replica.ports["redis"], socket_timeout=20) as client:
            client.replicaof("NO", "ONE")

    def promote_replica(self) -> None:
        """The master dies, and the replica that lacks the tail answers at its address."""
        assert self._replica is not None
        self.server.kill()
        deadline = time.monotonic() + _SYNC_S
        with redis.Redis(port=self._replica.ports["redis"], socket_timeout=20) as client:
            while True:
                try:
                    client.config_set("port", self.port)
                    break
                except redis.ResponseError:
                    assert time.monotonic() < deadline, "the master's port is not free"
                    time.sleep(0.05)
        self._replica.ports["redis"] = self.port
        self.server, self._replica = self._replica, None
