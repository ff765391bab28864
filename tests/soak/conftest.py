"""The zygote of the soak's tests: one per pytest process, with the model that the broker tests train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broker.conftest import Deploy, bundle, deploy, simulation
from tests.soak.scene import Scene
from tests.soak.workers import Zygote

__all__ = ["bundle", "deploy", "simulation"]
MakeScene = Callable[..., Scene]


@pytest.fixture(scope="session")
def zygote(bundle: Path) -> Iterator[Zygote]:  # pytest's way to ask for a fixture
    started = Zygote(bundle)
    yield started
    started.close()


@pytest.fixture
def scene(zygote: Zygote, bundle: Path, deploy: Deploy, tmp_path: Path) -> MakeScene:
    """Makes scenes of two partitions, in which little happens but often."""

    def make(**settings: object) -> Scene:
        given = {
            "partitions": 2,
            "scoring__bundle": str(bundle),
            "batch__max_events": 16,
            "batch__max_wait_ms": 20,
            "state__flush_interval_ms": 200,
            "kafka__session_timeout_ms": 2_000,
            "kafka__heartbeat_interval_ms": 400,
            "kafka__transaction_timeout_ms": 5_000,
            "records__features": "all",
        }
        return Scene(deploy(**{**given, **settings}), zygote, tmp_path)

    return make
