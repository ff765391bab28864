"""The demo's payments: a fast warm-up from the end of the history, then live traffic, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stream.clock import Clock
from stream.config import Settings
from stream.demo.plan import DAY_MS, Plan
from stream.errors import RiskstreamError
from stream.history.batch import iterate_slices
from stream.kafka.port import PlainProducer
from stream.publish import Published, Publisher, play, replay
from stream.simulate.live import LiveTraffic
from stream.simulate.simulation import Simulation

_BATCH_ROWS = 1_024


class Traffic:
    """Publishes until stopped. `failure` holds what ended it, if that was an error."""

    def __init__(self, plan: Plan, simulation: Simulation, settings: Settings, producer: PlainProducer, clock: Clock):
        self._plan, self._simulation, self._clock = plan, simulation, clock
        self._warm_up = Publisher(producer, settings.topics, clock, with_source_time=False)
        self._live = Publisher(producer, settings.topics, clock)
        self._live_from_ms = simulation.start_ms + plan.history_days * DAY_MS
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: RiskstreamError | None = None

    @property
    def events(self) -> int:
        return self._warm_up.published.events + self._live.published.events

    @property
    def labels(self) -> int:
        return self._warm_up.published.labels + self._live.published.labels

    @property
    def is_done(self) -> bool:
        """Whether the part that was begun has ended."""
        return self._thread is None or not self._thread.is_alive()

    def warm_up(self, account_field: str) -> None:
        """Begins to publish the last days of the history, as fast as it goes, so that accounts have a past."""
        from_ms = self._live_from_ms - self._plan.warm_up_days * DAY_MS
        history = self._simulation.generate(from_ms=from_ms, until_ms=self._live_from_ms)
        batches = iterate_slices(history, _BATCH_ROWS)
        self._begin(lambda: replay(batches, self._warm_up, self._clock, self._stop, account_field=account_field))

    def live(self) -> None:
        """Begins live traffic."""
        traffic = LiveTraffic(
            self._simulation,
            from_ms=self._live_from_ms,
            rate_per_s=self._plan.rate_per_s,
            clock=self._clock,
            seed=self._plan.seed,
        )
        self._begin(lambda: play(traffic, self._live, self._clock, self._stop))

    def stop(self) -> None:
        """Blocks until everything published has been acknowledged."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _begin(self, work: Callable[[], Published]) -> None:
        def run() -> None:
            try:
                work()
            except RiskstreamError as error:
                self.failure = error

        self._thread = threading.Thread(target=run, name="traffic", daemon=True)
        self._thread.start()
