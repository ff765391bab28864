"""What the demo simulates, and the settings of its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from stream.config import Settings, load_settings
from stream.simulate.population import USD_PER_UNIT
from stream.simulate.simulation import Simulation

DAY_MS = 86_400_000
_TRAINED_FROM_MS = 1_767_571_200_000  # Monday, 5 January 2026
_PLAYED_DAYS = 400
# Whatever a fetch asks for, the embedded broker sends all that a partition has. kafka-python hangs up at more than
# the larger of this and 100 MB, which are some ten minutes of scores.
_FETCH_MAX_BYTES = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One population and its timeline: days of history to train on, the last of them to warm up, then live.

    A timeline looks the same from any Monday on, so a model trained once fits whenever the demo runs.
    """

    accounts: int = 500
    seed: int = 7
    fraud_rate: float = 0.01
    history_days: int = 28
    warm_up_days: int = 4
    rate_per_s: float = 200.0

    def simulation(self, now_ms: int) -> Simulation:
        """The timeline, so far in the past that live traffic does not catch up with the wall clock soon."""
        start_ms = Simulation.start_before(now_ms, self.history_days + _PLAYED_DAYS)
        return Simulation(accounts=self.accounts, seed=self.seed, fraud_rate=self.fraud_rate, start_ms=start_ms)

    @property
    def training(self) -> Mapping[str, str]:
        """Options of `riskstream train`."""
        start = datetime.fromtimestamp(_TRAINED_FROM_MS / 1000, UTC)
        simulation = Simulation(accounts=self.accounts, seed=self.seed, fraud_rate=self.fraud_rate)
        return {
            "--simulated": str(int(simulation.events_per_day * self.history_days)),
            "--accounts": str(self.accounts),
            "--fraud-rate": str(self.fraud_rate),
            "--start": start.strftime("%Y-%m-%d"),
            "--seed": str(self.seed),
            # Two threads wait for each other by spinning: on a busy machine that took five times the CPU.
            "--threads": "1",
        }


def write_rates(folder: Path) -> Path:
    """The rates that the simulation uses, as a rates file."""
    file = folder / "rates.yaml"
    rates = {currency: str(rate) for currency, rate in sorted(USD_PER_UNIT.items()) if currency != "USD"}
    file.write_text(yaml.safe_dump({"version": "demo-1", "base": "USD", "rates": rates}))
    return file


def write_settings(folder: Path, *, bootstrap: str, redis_url: str, bundle: Path, rates: Path) -> tuple[Path, Settings]:
    """The settings file of the workers, and the same settings for this process. The environment has no say."""
    file = folder / "settings.yaml"
    document = {
        "kafka": {"bootstrap_servers": bootstrap, "group": "riskstream-demo", "fetch_max_bytes": _FETCH_MAX_BYTES},
        "redis": {"url": redis_url},
        "scoring": {"bundle": str(bundle), "rates": str(rates)},
        "log": {"format": "json"},
    }
    file.write_text(yaml.safe_dump(document))
    return file, load_settings(file, {}, {}).settings
