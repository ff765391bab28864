"""Local Kafka: Apache Kafka itself (one KRaft node), and the embedded broker of the noida-db wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from stream.errors import UnavailableError
from stream.stack.cache import cache_folder, exclusive
from stream.stack.process import HOST, LocalServer

KAFKA_VERSION = "4.1.1"
_MAVEN_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_CLUSTER_ID = "cmlza3N0cmVhbS1sb2NhbA"
_METADATA_KEY, _METADATA_VERSION = 3, 1
_PROBE_TIMEOUT_S = 1.0

# slf4j-simple, because Kafka's own jars bring no logging back end and would start, and fail, in silence.
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>riskstream</groupId><artifactId>local-kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


def kafka_answers(port: int) -> bool:
    """Whether a broker on loopback answers a Metadata request with at least one live broker."""
    header = struct.pack(">hhih", _METADATA_KEY, _METADATA_VERSION, 1, -1)
    no_topics = struct.pack(">i", 0)
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), _PROBE_TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(header) + len(no_topics)) + header + no_topics)
        answer = connection.makefile("rb").read(12)
        # Size, correlation id, then the number of brokers.
        return len(answer) == 12 and bool(struct.unpack(">iii", answer)[2] > 0)
    return False


def kafka_jars() -> Path:
    """The folder of Apache Kafka's jars; the first call fetches them with Maven (about 15 s).

    UnavailableError when Maven fails.
    """
    folder = cache_folder() / "kafka" / KAFKA_VERSION
    pom = folder / "pom.xml"
    # The POM is written last, so it also says that the folder is complete, and for which dependencies.
    with exclusive(folder.with_name(f"{folder.name}.lock")):
        if not (pom.is_file() and pom.read_text() == _POM):
            fetching = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(fetching, ignore_errors=True)
            fetching.mkdir(parents=True)
            (fetching / "pom.xml").write_text(_POM)
            command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", _MAVEN_PLUGIN]
            command.append(f"-DoutputDirectory={fetching}")
            done = subprocess.run(command, cwd=fetching, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise UnavailableError(f"Maven could not fetch Apache Kafka {KAFKA_VERSION}:\n{done.stdout[-2000:]}")
            shutil.rmtree(folder, ignore_errors=True)
            fetching.rename(folder)
    return folder


class ApacheKafka(LocalServer):
    """Apache Kafka in KRaft mode, one node that is broker and controller. Ready in about 4 s."""

    kind: ClassVar[str] = "Apache Kafka"
    port_names: ClassVar[tuple[str, ...]] = ("kafka", "controller")

    def __init__(
        self,
        data: Path,
        *,
        ports: Mapping[str, int] | None = None,
        detached: bool = False,
        heap_mb: int = 512,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data, ports=ports, detached=detached)
        self.heap_mb = heap_mb
        self.properties = dict(properties or {})

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("java") is None:
            return "Apache Kafka needs Java 17 or newer: apt-get install openjdk-17-jre-headless maven"
        if shutil.which("mvn") is None and not (cache_folder() / "kafka" / KAFKA_VERSION / "pom.xml").is_file():
            return "Apache Kafka is fetched with Maven: apt-get install maven"
        return None

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.ports['kafka']}"

    @property
    def address(self) -> str:
        return self.bootstrap

    def answers(self) -> bool:
        return kafka_answers(self.ports["kafka"])

    def _command(self) -> Sequence[str | Path]:
        jars = kafka_jars()
        config = self.data / "server.properties"
        lines = [f"{name}={value}\n" for name, value in self._effective_properties().items()]
        config.write_text("".join(lines))
        self._format(jars, config)
        return [*_java(jars, self.heap_mb), "kafka.Kafka", config]

    def _effective_properties(self) -> dict[str, str]:
        broker, controller = (f"{HOST}:{self.ports[name]}" for name in self.port_names)
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            # Static voters: unlike a dynamic quorum, the formatted folder then holds no port.
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": os.fspath(self._log_folder),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # A replayed history carries timestamps of years ago; a retention by time would drop it at once.
            "log.retention.ms": "-1",
            # After a crash the controller refuses the broker until its old session has ended (default 9 s).
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            # The default takes 128 MB of heap.
            "log.cleaner.dedupe.buffer.size": "4194304",
            **self.properties,
        }

    @property
    def _log_folder(self) -> Path:
        return self.data / "logs"

    def _format(self, jars: Path, config: Path) -> None:
        """Formats a new log folder; a copy of the first one's result, which saves a JVM start of 1 s."""
        if (self._log_folder / "meta.properties").is_file():
            return
        template = jars / "formatted"
        with exclusive(jars.with_name(f"{jars.name}.lock")):
            if not template.is_dir():
                tool = [*_java(jars, 128), "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(config)]
                done = subprocess.run(tool, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise UnavailableError(f"Kafka's StorageTool failed:\n{(done.stdout + done.stderr)[-2000:]}")
                copy = template.with_name(f"{template.name}.part")
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(self._log_folder, copy)
                copy.rename(template)
        shutil.copytree(template, self._log_folder, dirs_exist_ok=True)


def _java(jars: Path, heap_mb: int) -> list[str]:
    return [
        shutil.which("java") or "java",
        f"-Xmx{heap_mb}m",
        # The first compiler tier alone: a shorter start, and less CPU beside the workers.
        "-XX:TieredStopAtLevel=1",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-cp",
        f"{jars}/*",
    ]


class EmbeddedKafka(LocalServer):
    """The embedded broker of the noida-db wheel: no Java, ready in well under a second. For demos and tests."""

    kind: ClassVar[str] = "embedded Kafka"
    port_names: ClassVar[tuple[str, ...]] = ("kafka",)

    @classmethod
    def missing(cls) -> str | None:
        if _embedded_broker() is None:
            return "the embedded broker comes with the demo extra: pip install 'riskstream[demo]'"
        return None

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.ports['kafka']}"

    @property
    def address(self) -> str:
        return self.bootstrap

    def answers(self) -> bool:
        return kafka_answers(self.ports["kafka"])

    def _command(self) -> Sequence[str | Path]:
        binary = _embedded_broker()
        assert binary is not None  # `missing` has looked
        # Some installers drop the executable bit of data files.
        if not os.access(binary, os.X_OK):
            binary.chmod(binary.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        port = str(self.ports["kafka"])
        return [binary, "start", "--data-dir", self.data / "broker", "--only", "kafka", "--kafka-port", port]


def _embedded_broker() -> Path | None:
    package = importlib.util.find_spec("noida_db")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).with_name("noida-db")
