"""Collectors that prometheus_client lacks: a histogram filled by the array, a timer of wall and CPU time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class BulkHistogram(Collector):
    """A histogram that takes a whole array at once: a few microseconds per batch instead of one per event.

    Same exposition as prometheus_client's Histogram. Values that are not finite are left out. Safe to
    observe in one thread while another collects.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = np.asarray(bounds, dtype=np.float64)
        if self._bounds.size == 0 or not np.all(np.diff(self._bounds) > 0):
            raise ValueError(f"{name}: the bounds of a histogram must rise")
        self._labels = [*map(floatToGoString, self._bounds), "+Inf"]
        self._counts = np.zeros(self._bounds.size + 1, dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: ArrayLike) -> None:
        """Counts every value of an array of any shape."""
        flat: NDArray[np.float64] = np.asarray(values, dtype=np.float64).ravel()
        finite = np.isfinite(flat)
        if not finite.all():
            flat = flat[finite]
        places = np.searchsorted(self._bounds, flat, side="left")
        counts = np.bincount(places, minlength=self._counts.size)
        total = float(flat.sum())
        with self._lock:
            self._counts += counts
            self._sum += total

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._documentation)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            cumulative, total = np.cumsum(self._counts).tolist(), self._sum
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], list(zip(self._labels, cumulative, strict=True)), total)
        yield family


class StageTimer:
    """Adds the wall and CPU time of a `with` block to one stage, and tells `watcher`. Not reentrant."""

    __slots__ = ("_cpu", "_cpu_clock", "_cpu_start", "_wall", "_wall_clock", "_wall_start", "watcher")

    def __init__(self, wall: Histogram, cpu: Counter, wall_clock: Callable[[], float], cpu_clock: Callable[[], float]):
        self._wall, self._wall_clock = wall, wall_clock
        self._cpu, self._cpu_clock = cpu, cpu_clock
        self._wall_start = self._cpu_start = 0.0
        self.watcher: Callable[[float], None] | None = None

    def __enter__(self) -> None:
        self._wall_start, self._cpu_start = self._wall_clock(), self._cpu_clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cpu.inc(max(0.0, self._cpu_clock() - self._cpu_start))
        took_s = self._wall_clock() - self._wall_start
        self._wall.observe(took_s)
        if self.watcher is not None:
            self.watcher(took_s)
