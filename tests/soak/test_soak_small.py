"""The soaks of every CI run, one of each client: every named point, every fault; `make soak` is the long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream.stack import ApacheKafka, RedisServer
from tests.conftest import require
from tests.soak.run import soak
from tests.soak.schedule import OTHERS, POINTS, plan
from tests.soak.workers import Zygote

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

RATE = 60.0


@pytest.mark.parametrize(("client", "kills", "seed"), [("kafka-python", 50, 4), ("confluent", 11, 5)])
def test_nothing_lost_nothing_twice_nothing_different(
    client: str, kills: int, seed: int, zygote: Zygote, bundle: Path, tmp_path: Path
) -> None:
    for server in (ApacheKafka, RedisServer):
        require(server)
    outcome = soak(
        plan(seed, kills, long_s=5.0), tmp_path / "soak", zygote, bundle, client=client, rate=RATE, events=30_000
    )
    summary = outcome.summary()
    print(json.dumps(summary))
    repeat = f"make soak KILLS={kills} SEED={seed} CLIENT={client} RATE={RATE:g} ONLY={len(outcome.struck)}"
    assert outcome.complaints == [], f"repeat it with: {repeat}"
    assert summary["kills"] >= kills
    assert set(summary["faults"]) >= set(OTHERS)
    assert set(summary["points"]) == set(POINTS), "a worker died at every named point"
    assert summary["compared_whole"] == summary["scored"] > 1_000
    assert summary["rows"] > 100
