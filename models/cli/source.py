"""Where the commands' events come from: a history file, or a simulation; and their shared options."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.cli.context import note
from stream.cli.progress import Steps
from stream.errors import ConfigError

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Source:
    """What was asked for. One of `file` (with `mapping`) and `simulated`."""

    domain: Any
    file: Path | None
    mapping: Path | None
    simulated: int | None = None
    accounts: int = 500
    fraud_rate: float = 0.01
    seed: int = 0
    start: str | None = None
    label_delay: str | None = None

    def replayed(
        self, settings: Any, steps: Steps, *, until_ms: int, partitions: int, segments: Sequence[str]
    ) -> tuple[Any, int]:
        """The training set of the events before a moment, and the label delay in milliseconds. Blocks. ConfigError."""
        from models.history import SEGMENTS, training_set
        from stream.app import load_rates

        batches, total, delay_ms, lines = self._history() if self.file else self._simulation()
        rates = load_rates(settings, self.domain)
        dataset = training_set(
            _counted(batches, total, steps),
            self.domain,
            rates,
            until_ms=until_ms,
            partitions=partitions,
            segments=tuple(dict.fromkeys([*SEGMENTS, *segments])),
        )
        lacking = [name for name in segments if name not in dataset.segments]
        if lacking:
            raise ConfigError(
                f"--segment {lacking[0]}: the history has no such field; columns of the file that are to be kept "
                "are listed under `attributes` of the mapping"
            )
        for line in lines():
            note(line)
        return dataset, delay_ms

    def _history(self) -> tuple[Iterable[Any], int | None, int, Any]:
        from stream.features.spec import window_ms
        from stream.history.batch import WireContract
        from stream.history.mapping import load_mapping
        from stream.history.reader import HistoryReader

        if self.file is None or self.mapping is None:
            raise ConfigError("FILE needs --mapping M: a YAML file that says which column is what (docs/history.md)")
        own_ms = None if self.label_delay is None else window_ms(self.label_delay)
        contract = WireContract.of(self.domain.event, self.domain.label, self.domain.time_field)
        bound = load_mapping(self.mapping, contract)
        label = bound.mapping.label
        if label is None:
            raise ConfigError(f"{self.mapping}: this command needs a label: say which column it is")
        reader = HistoryReader(self.file, bound, label_delay_ms=own_ms)
        delay_ms = own_ms if own_ms is not None else label.delay_ms or 0
        return reader, reader.total_rows(), delay_ms, lambda: list(reader.summary.lines())

    def _simulation(self) -> tuple[Iterable[Any], int | None, int, Any]:
        """A simulated history, whose labels have delays of their own."""
        from stream.features.spec import window_ms
        from stream.history.batch import iterate_slices
        from stream.simulate.simulation import LABEL_MATURITY_DAYS, Simulation

        if self.simulated is None:
            raise ConfigError("give a FILE with --mapping M, or --simulated EVENTS")
        simulation = (
            Simulation(accounts=self.accounts, seed=self.seed, fraud_rate=self.fraud_rate)
            if self.start is None
            else Simulation(
                accounts=self.accounts,
                seed=self.seed,
                fraud_rate=self.fraud_rate,
                start_ms=moment(self.start, "--start"),
            )
        )
        batch = simulation.generate(self.simulated)
        delay_ms = LABEL_MATURITY_DAYS * DAY_MS if self.label_delay is None else window_ms(self.label_delay)
        return iterate_slices(batch, 16_384), len(batch), delay_ms, list


def _counted(batches: Iterable[Any], total: int | None, steps: Steps) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        steps.show("events replayed", seen, total)


def moment(text: str, option: str) -> int:
    """A date or a time with a zone, in milliseconds. ConfigError names the option."""
    from stream.events.moments import NO_MOMENT, day_or_moment_ms

    found = day_or_moment_ms(text)
    if found == NO_MOMENT:
        raise ConfigError(f"{option} {text}: write a date (2020-07-01) or a time with a zone (2020-07-01T00:00:00Z)")
    return found


def figures_text(figures: dict[str, float]) -> str:
    """The figures of an epoch, for a line of progress."""
    return "".join(f"  {name} {value:.4g}" for name, value in figures.items())


def command_text() -> str:
    """The line that was typed."""
    return "riskstream " + " ".join(sys.argv[1:])
