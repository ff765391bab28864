"""`riskstream model`: deploy, roll back, take out, see."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, start_http_server

import stream.app
import tests.unit.model_fixtures
from stream.kafka.memory import MemoryBroker
from stream.metrics import Metrics
from stream.rollout import library
from tests.unit.conftest import Shell
from tests.unit.model_fixtures import lay_out, quick_bundle, reseal


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two versions of a bundle, of a domain that the command line can name."""
    domain, files = quick_bundle()
    monkeypatch.setattr(tests.unit.model_fixtures, "SMALL", domain, raising=False)
    monkeypatch.setenv("RISKSTREAM_DOMAIN", "tests.unit.model_fixtures:SMALL")
    monkeypatch.setattr(stream.app, "check_domain", lambda domain: None)
    monkeypatch.setenv("RISKSTREAM_SCORING__LIBRARY", str(tmp_path / "library"))
    (tmp_path / "library").mkdir()
    return [lay_out(tmp_path / name, reseal(files, version=name)) for name in ("1", "2")]


def test_models_are_deployed_rolled_back_and_taken_out(shell: Shell, broker: MemoryBroker, bundles: list[Path]) -> None:
    assert shell("model", "status", "--json").document["roles"] == {}
    assert shell("topics", "create").code == 0
    assert shell("model", "rollback").code == 2
    first = shell("model", "deploy", bundles[0], "--at", "2026-01-01T00:00:00Z", "--json").document
    assert (first["role"], first["bundle"]["model"], first["former"]) == ("champion", "tiny@1", None)
    assert first["from_ms"] == 1_767_225_600_000
    told = shell("model", "deploy", bundles[1], "--in", "1h")
    assert told.out.startswith("champion: tiny@2 scores every event from ")
    again = shell("model", "deploy", bundles[1], "--in", "1h", "--json").document
    assert again["former"]["model"] == "tiny@1", "a rollback leads to another model, not to the same"
    back = shell("model", "rollback", "--json").document
    assert (back["bundle"]["model"], back["former"]["model"]) == ("tiny@1", "tiny@2")
    assert shell("model", "deploy", bundles[1], "--role", "challenger-3").code == 0
    status = shell("model", "status")
    assert "champion      tiny@1  from " in status.out
    assert "challenger-3  tiny@2" in status.out
    assert shell("model", "remove", "--role", "champion").code == 2
    assert shell("model", "remove", "--role", "challenger-3").code == 0
    assert shell("model", "remove", "--role", "challenger-3").code == 2
    assert {path.name.partition("-")[0] for path in (bundles[0].parent / "library").iterdir()} == {"tiny@1", "tiny@2"}


def test_the_wait_runs_from_the_announcement_however_long_the_checks_took(
    shell: Shell, broker: MemoryBroker, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell("topics", "create").code == 0
    add = library.add

    def slow_copy(*what: Any) -> None:
        time.sleep(0.3)
        add(*what)

    monkeypatch.setattr(library, "add", slow_copy)
    begun_ms = time.time() * 1000
    told = shell("model", "deploy", bundles[0], "--in", "1s", "--json").document
    assert told["from_ms"] >= begun_ms + 1_300
    assert "has passed" in shell("model", "deploy", bundles[0], "--at", "2026-01-01T00:00:00Z").err
    assert "has passed" not in shell("model", "deploy", bundles[0], "--in", "1h").err


def test_what_cannot_be_deployed_says_why(
    shell: Shell, broker: MemoryBroker, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "topics create" in shell("model", "deploy", bundles[0]).err
    assert shell("model", "deploy", bundles[0], "--role", "king").code == 2
    assert "--at" in shell("model", "deploy", bundles[0], "--at", "tomorrow").err
    (bundles[1] / "model.ts").write_bytes(b"")
    refused = shell("model", "deploy", bundles[1])
    assert (refused.code, "model.ts" in refused.err) == (16, True)
    monkeypatch.delenv("RISKSTREAM_SCORING__LIBRARY")
    assert "RISKSTREAM_SCORING__LIBRARY" in shell("model", "deploy", bundles[0]).err
    link = tmp_path / "current"
    assert "nothing to go back to" in shell("model", "rollback", "--link", link).err
    assert shell("model", "deploy", bundles[0], "--link", link, "--json").document["former"] is None
    assert link.resolve() == bundles[0].resolve()


def test_a_link_is_moved_and_moved_back(shell: Shell, bundles: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "current"
    for bundle in bundles:
        assert shell("model", "deploy", bundle, "--link", link).code == 0
    assert link.resolve() == bundles[1].resolve()
    for expected in (bundles[0], bundles[1], bundles[0]):
        assert shell("model", "rollback", "--link", link).code == 0
        assert link.resolve() == expected.resolve()


def test_status_asks_workers(shell: Shell, broker: MemoryBroker, bundles: list[Path]) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.set_model("champion", "tiny", "1", "0" * 16)
    server, _ = start_http_server(0, "127.0.0.1", metrics.registry)
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert shell("topics", "create").code == 0
        assert shell("model", "deploy", bundles[0], "--in", "0s").code == 0
        assert shell("model", "status", "--worker", url, "--json").document["workers"] == {url: {"champion": "tiny@1"}}
        assert shell("model", "deploy", bundles[1], "--in", "0s").code == 0
        behind = shell("model", "status", "--worker", url)
        assert (behind.code, "bundle refused" in behind.err) == (1, True)
    finally:
        server.shutdown()
        server.server_close()
    assert shell("model", "status", "--worker", url).code == 1
    assert shell("model", "status", "--worker", "file:///etc/passwd").code == 2
