"""Local Prometheus: the installed server with a configuration file of the caller's."""

from __future__ import annotations

import contextlib
import http.client
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from stream.stack.process import HOST, LocalServer

_PROBE_TIMEOUT_S = 1.0


class PrometheusServer(LocalServer):
    """The prometheus on the PATH. Ready once its storage and its rules are loaded."""

    kind: ClassVar[str] = "prometheus"
    port_names: ClassVar[tuple[str, ...]] = ("prometheus",)

    def __init__(
        self, data: Path, config: Path, *, ports: Mapping[str, int] | None = None, detached: bool = False
    ) -> None:
        super().__init__(data, ports=ports, detached=detached)
        self._config = config.absolute()

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("prometheus") is None or shutil.which("promtool") is None:
            return "prometheus is not installed: apt-get install prometheus"
        return None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.ports['prometheus']}"

    def answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, self.ports["prometheus"], timeout=_PROBE_TIMEOUT_S)
            with contextlib.closing(connection):
                connection.request("GET", "/-/ready")
                return connection.getresponse().status == http.client.OK
        return False

    def _command(self) -> Sequence[str | Path]:
        return [
            shutil.which("prometheus") or "prometheus",
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.data / 'series'}",
            f"--web.listen-address={HOST}:{self.ports['prometheus']}",
        ]
