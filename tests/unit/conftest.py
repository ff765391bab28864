"""The command line in this process, over a Kafka in memory."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

import stream.cli.connection
from stream.cli import main
from stream.kafka.memory import MemoryBroker, MemoryKafka


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The last line of stdout as JSON."""
        return json.loads(self.out.splitlines()[-1])


class Shell:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Ended:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, *self._capsys.readouterr())


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in ("RISKSTREAM_CONFIG", "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS", "RISKSTREAM_REDIS__URL"):
        monkeypatch.delenv(name, raising=False)
    return Shell(capsys)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """What every command of this process takes for Kafka."""
    broker = MemoryBroker()
    monkeypatch.setattr(stream.cli.connection, "client_of", lambda settings: MemoryKafka(broker, settings))
    return broker
