"""What the view shows: read from the output topics as any consumer would, committed records only."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream.clock import Clock
from stream.config import TopicSettings
from stream.kafka.headers import source_ms
from stream.kafka.port import Reader, TopicPartition

_WINDOW_S = 10.0
_KEPT_ALERTS = 50
_PAUSE_S = 0.01


class Latencies:
    """Whole milliseconds, counted: bounded whatever the run's length."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, latency_ms: int) -> None:
        self._counts[max(0, latency_ms)] += 1

    def percentile(self, share: float) -> float | None:
        """The smallest latency that at least this share of all do not exceed; None if there are none."""
        wanted, seen = share * len(self), 0
        for latency_ms in sorted(self._counts):
            seen += self._counts[latency_ms]
            if seen >= wanted:
                return float(latency_ms)
        return None


@dataclass(slots=True)
class Seen:
    """The outputs so far."""

    scored: int = 0
    dead: int = 0
    alerts: int = 0
    bands: Counter[str] = field(default_factory=Counter)
    band_starts: dict[str, int] = field(default_factory=dict)
    """The lowest score seen in each band: their order."""
    latencies: Latencies = field(default_factory=Latencies)
    last_alerts: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=_KEPT_ALERTS))


class Watch:
    """Reads scores, alerts and dead letters from their beginning on. Not thread-safe."""

    def __init__(self, reader: Reader, topics: TopicSettings, partitions: Mapping[str, int], clock: Clock) -> None:
        self.seen = Seen()
        self._reader, self._topics, self._clock = reader, topics, clock
        names = (topics.scores, topics.alerts, topics.dead_letters)
        self._partitions = [TopicPartition(name, number) for name in names for number in range(partitions[name])]
        reader.assign(dict.fromkeys(self._partitions, 0))
        self._recent: deque[tuple[float, int, Sequence[int]]] = deque()

    def poll(self, timeout_ms: int) -> None:
        """Takes what has come. Blocks up to the timeout."""
        # Not `poll(..., timeout_ms)`: the embedded broker answers an empty fetch at once instead of waiting,
        # and kafka-python would ask again and again, at the cost of most of a core.
        deadline = time.monotonic() + timeout_ms / 1000
        while not (polled := self._reader.poll(5_000, 0)) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        now_ms, latencies, scored = self._clock.now_ms(), [], 0
        for (topic, _), records in polled.items():
            for record in records:
                content = json.loads(record.value or b"{}")
                if topic == self._topics.dead_letters:
                    self.seen.dead += content["origin"]["topic"] == self._topics.transactions
                    continue
                if topic == self._topics.alerts:
                    self.seen.alerts += 1
                    self.seen.last_alerts.append(content)
                    continue
                scored += 1
                self._count_band(content)
                started_ms = source_ms(record.headers)
                if started_ms is not None:
                    self.seen.latencies.add(now_ms - started_ms)
                    latencies.append(now_ms - started_ms)
        self.seen.scored += scored
        self._forget(time.monotonic(), scored, latencies)

    def _count_band(self, score: Mapping[str, Any]) -> None:
        band, value = score.get("band") or "no band", score.get("score") or 0
        self.seen.bands[band] += 1
        self.seen.band_starts[band] = min(value, self.seen.band_starts.get(band, value))

    def bands(self) -> dict[str, int]:
        """Scores by band, the lowest band first."""
        order = sorted(self.seen.bands, key=lambda band: self.seen.band_starts[band])
        return {band: self.seen.bands[band] for band in order}

    def _forget(self, now: float, scored: int, latencies: Sequence[int]) -> None:
        self._recent.append((now, scored, latencies))
        while now - self._recent[0][0] > _WINDOW_S:
            self._recent.popleft()

    def has_read_all(self) -> bool:
        """Whether everything committed so far has been taken. Blocks for some requests."""
        return all(self._reader.position(tp) >= self._reader.end_offset(tp) for tp in self._partitions)

    def scored_per_s(self) -> float:
        """Over the last ten seconds."""
        span = self._recent[-1][0] - self._recent[0][0] if self._recent else 0.0
        # The first entry opens the span; what it counted came before.
        return (sum(entry[1] for entry in self._recent) - self._recent[0][1]) / span if span > 0 else 0.0

    def recent_latency_ms(self, share: float) -> int | None:
        """A percentile over the last ten seconds."""
        found = sorted(latency for entry in self._recent for latency in entry[2])
        return found[min(len(found) - 1, int(share * len(found)))] if found else None
