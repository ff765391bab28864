"""Deployments of workers, and the model that they score with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stream import app
from stream.clock import SystemClock
from stream.config import load_settings
from stream.history.batch import HistoryBatch
from stream.simulate.payments import DAY_MS
from stream.simulate.simulation import LABEL_MATURITY_DAYS, Simulation
from stream.stack import ApacheKafka, RedisServer
from stream.stack.cache import exclusive
from tests.broker.harness import START_MS, Deployment

_HISTORY_DAYS = 35
Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(apache_kafka: ApacheKafka, redis_server: RedisServer, unique: str, tmp_path: Path) -> Iterator[Deploy]:
    """Makes deployments with their topics; whatever they started ends with the test."""
    made: list[Deployment] = []

    def make(
        *, partitions: int = 4, topics: bool = True, redis: RedisServer | None = None, **settings: object
    ) -> Deployment:
        name, folder = f"{unique}-{len(made)}", tmp_path / f"deployment-{len(made)}"
        made.append(Deployment(apache_kafka, redis or redis_server, name, folder, partitions=partitions, **settings))
        return made[-1].create_topics() if topics else made[-1]

    yield make
    for deployment in made:
        deployment.close()


@pytest.fixture(scope="session")
def simulation() -> Simulation:
    """A small population with enough fraud to learn from."""
    return Simulation(accounts=60, merchants=40, seed=11, fraud_rate=0.04, start_ms=START_MS)


@pytest.fixture(scope="session")
def bundle(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on five weeks of the simulation; made once, whatever the number of test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bundle"
    with exclusive(folder.with_suffix(".lock")):
        if not folder.exists():
            train_bundle(simulation, folder)
    return folder


def train_bundle(simulation: Simulation, folder: Path) -> None:
    """A tiny net: what matters here is that it is a real one."""
    from models.export import export_bundle
    from models.fitting import FitOptions
    from models.history import training_set
    from models.nets.risknet import NetOptions
    from models.train import TrainOptions, train

    settings = load_settings(None, {}, {}).settings
    domain = app.load_domain(settings)
    until_ms = simulation.start_ms + _HISTORY_DAYS * DAY_MS
    history = simulation.generate(until_ms=until_ms)
    dataset = training_set([history], domain, app.load_rates(settings, domain), until_ms=until_ms)
    options = TrainOptions(
        until_ms=until_ms,
        label_delay_ms=LABEL_MATURITY_DAYS * DAY_MS,
        alert_rate=0.05,
        device="cpu",
        net=NetOptions(hidden=8, embedding=2, width=16),
        fit=FitOptions(epochs=3, batch_size=64, learning_rate=1e-2, weight_decay=1e-2),
    )
    trained = train(dataset, options)
    export_bundle(trained, domain, folder, name="tiny", version="7", command="riskstream train", clock=SystemClock())


def after_history(simulation: Simulation, events: int) -> HistoryBatch:
    """What follows the days that the bundle was trained on."""
    return simulation.generate(events, from_ms=simulation.start_ms + _HISTORY_DAYS * DAY_MS)
