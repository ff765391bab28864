"""The short form of `make bench-takeover`: a killed worker's partitions are scored again soon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import takeover
from stream.stack import ApacheKafka, RedisServer
from tests.conftest import require

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

_ACCOUNTS, _SESSION_TIMEOUT_MS = 2_000, 6_000
_BOUND_S = 36.0
"""For a busy machine; a quiet one takes 7. Nobody ends a dead worker's transaction: then it lasts a minute."""


def test_the_partitions_of_a_killed_worker_are_scored_again_soon(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of the two dies inside a transaction."""
    require(ApacheKafka)
    require(RedisServer)
    assert takeover.TRANSACTION_TIMEOUT_MS / 1000 > _BOUND_S + _SESSION_TIMEOUT_MS / 1000
    options = {
        "accounts": _ACCOUNTS,
        "kills": 2,
        "rate": 50,
        "session-timeout-ms": _SESSION_TIMEOUT_MS,
        "bundle": bundle,
    }
    assert takeover.main([word for name, value in options.items() for word in (f"--{name}", str(value))]) == 0
    out, err = capsys.readouterr()
    print(err)
    found = json.loads(out.splitlines()[-1])
    assert found["accounts"] >= _ACCOUNTS
    assert found["kills"] == 2
    assert "open transaction, 1 fenced" in err
    assert found["first_score_s"]["max"] < _BOUND_S
