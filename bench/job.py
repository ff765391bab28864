"""The one job of every case: simulated payments of 100,000 accounts, scored by the default LSTM + MLP bundle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

from stream import app
from stream.clock import SystemClock
from stream.config import Settings, load_settings
from stream.demo.plan import write_rates
from stream.features.spec import Domain
from stream.history.batch import HistoryBatch, iterate_slices
from stream.scoring.loading import load_scorer
from stream.simulate.simulation import Simulation
from stream.stack.cache import cache_folder, exclusive

ACCOUNTS = 100_000
PARTITIONS = 4
SEED = 7
ALERT_RATE = 0.005
_TRAINING = {"--simulated": "20000", "--accounts": "300", "--seed": "7", "--threads": "1", "--name": "bench"}
_CALIBRATED_ON = 240_000
COMMAND = [sys.executable, "-m", "stream.cli"]


@dataclass(frozen=True)
class Job:
    """What the cases share. `folder` is thrown away; the bundle is trained once and kept in the cache."""

    folder: Path
    trained: Path | None = None
    """A bundle to take instead, with its own thresholds."""
    _messages: list[tuple[bytes, bytes]] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def rates(self) -> Path:
        return write_rates(self.folder)

    @cached_property
    def domain(self) -> Domain:
        return app.load_domain(load_settings(None, {}, {}).settings)

    @cached_property
    def model(self) -> Path:
        """The folder with `bundle` and `policy.yaml`: made the first time, for this spec and torch."""
        made_of = {
            "spec_id": self.domain.spec_id,
            "torch": version("torch"),
            "training": _TRAINING,
            "over": _CALIBRATED_ON,
        }
        name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        folder = cache_folder() / "bench" / name
        with exclusive(folder.with_suffix(".lock")):
            if not (folder / "policy.yaml").exists():
                folder.mkdir(parents=True, exist_ok=True)
                if not (folder / "bundle").exists():
                    options = [word for option in _TRAINING.items() for word in option]
                    riskstream(["train", *options, "--out", str(folder / "bundle")], {})
                self._write_policy(folder)
        return folder

    @property
    def bundle(self) -> Path:
        return self.trained or self.model / "bundle"

    def events(self, count: int, *, accounts: int = ACCOUNTS) -> HistoryBatch:
        """The first `count` events of the simulated timeline."""
        return Simulation(accounts=accounts, seed=SEED).generate(count)

    def messages(self, count: int) -> list[tuple[bytes, bytes]]:
        """(key, value) of each of the first `count` events, as published. Made once, for many cases."""
        if len(self._messages) < count:
            events = self.events(count)
            keys = [account.encode() for account in events.text["account_id"].tolist()]
            self._messages[:] = zip(keys, events.events_json(), strict=True)
        return self._messages[:count]

    @property
    def scoring(self) -> dict[str, str]:
        """The settings that every worker and every offline run of the job has, as environment variables."""
        policy = {} if self.trained else {"RISKSTREAM_SCORING__POLICY": str(self.model / "policy.yaml")}
        return policy | {
            "RISKSTREAM_SCORING__BUNDLE": str(self.bundle),
            "RISKSTREAM_SCORING__RATES": str(self.rates),
            "RISKSTREAM_LOG__FORMAT": "json",
            # A backlog is what many cases measure: nothing of it may be left out.
            "RISKSTREAM_SCORING__DEADLINE_MS": "0",
        }

    def settings(self, **overrides: object) -> Settings:
        """The same for an engine inside this process."""
        return load_settings(None, self.scoring, {n.replace("__", "."): v for n, v in overrides.items()}).settings

    def _write_policy(self, folder: Path) -> None:
        """Thresholds at which this stream has as many alerts as the domain means: 0.5 % of the events.

        The short training does not fit the stream's cold start, and reasons cost about 25 model rows an alert.
        """
        environment = {"RISKSTREAM_SCORING__RATES": str(self.rates)}
        settings = load_settings(None, environment, {}).settings
        scorer = load_scorer(folder / "bundle", self.domain)
        offline = app.OfflineScorer(settings, self.domain, scorer, SystemClock(), labels="none")
        found = [
            record["probability"]
            for records in offline.records(iterate_slices(self.events(_CALIBRATED_ON), 16_384))
            for record in records
        ]
        review, decline = (float(np.quantile(found, 1 - rate)) for rate in (ALERT_RATE, ALERT_RATE / 5))
        _policy(folder / "policy.yaml", "bench", review, max(decline, review + 1e-6))

    @cached_property
    def without_alerts(self) -> Path:
        """A policy at which nothing alerts: for accounts that no simulation made, which look like fraud."""
        return _policy(self.folder / "no-alerts.yaml", "no alerts", 0.999_998, 0.999_999)


def _policy(path: Path, version: str, review: float, decline: float) -> Path:
    path.write_text(yaml.safe_dump({"version": version, "thresholds": {"review": review, "decline": decline}}))
    return path


def riskstream(arguments: list[str], environment: dict[str, str]) -> str:
    """Runs a command with one torch thread; returns its stdout. Its failure ends the benchmark."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=surroundings(environment), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def surroundings(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a child: this one's, without settings of the caller's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RISKSTREAM_")}
    kept |= {name: os.environ[name] for name in ("RISKSTREAM_CACHE",) if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1"} | environment
