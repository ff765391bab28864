"""The metrics of `riskstream quality`, declared once, in the manner of stream/metrics.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from stream.quality.book import CALIBRATION_EDGES, Book
from stream.quality.delay import GROUPS
from stream.quality.figures import Figures

_BIN_LABELS = [*(f"{edge:g}" for edge in CALIBRATION_EDGES), "1"]
"""A calibration bin is named by its upper edge."""

_HELP = {
    "quality_ratio": (
        "Of mature events, by measure: precision, recall, money_recall, false_positive_rate, alert_rate, calibration "
        "(frauds per predicted fraud), calibration_error. Recall or precision falling: compare with drift, then train "
        "anew. Calibration far from 1: thresholds no longer mean what they did.",
        ("measure", "model", "window"),
    ),
    "quality_events": (
        "Numerators and denominators of riskstream_quality_ratio, in events: scored, suspicious, declined, fraud, "
        "caught, missed, false_alarm, genuine (estimated where labels are late), labelled_fraud, labelled_genuine (as "
        "they came). Few frauds: the ratios are noise.",
        ("kind", "model", "window"),
    ),
    "quality_amount": (
        "Amounts of mature events in the base currency: scored, fraud, caught, missed. Missed growing while recall "
        "stands: the frauds that pass are getting larger.",
        ("kind", "model", "window"),
    ),
    "quality_calibration_events": (
        "Mature events by bin of predicted probability (named by its upper edge): scored, predicted (sum of "
        "probabilities), fraud. Predicted far from fraud in a bin: calibrate anew.",
        ("kind", "bin", "model", "window"),
    ),
    "quality_label_completeness_ratio": (
        "Share of frauds that are labelled once they are mature, estimated from the delays seen. Below 0.8: raise "
        "quality.maturity_days; figures lean on the estimate.",
        ("group",),
    ),
    "drift_psi": (
        "Population stability index against the bundle's reference, of the probability and of the top features. Above "
        "0.25: the input is not what the model was trained on; see riskstream_score and retrain.",
        ("column", "model", "window"),
    ),
    "drift_events": (
        "Events behind riskstream_drift_psi. Below 500 none is given; 0 for features: workers need "
        "records.features=sample (or all), and the bundle a reference.",
        ("column", "model", "window"),
    ),
    "quality_clock_timestamp_seconds": (
        "Newest event time that was read. Far behind the wall clock: the scores have stopped, or this process lags.",
        (),
    ),
    "quality_lag_events": (
        "Records of the score and label topics not yet read. Growing: this process is too slow or stands still.",
        (),
    ),
    "quality_stored_events": (
        "Events remembered for their labels. At quality.max_events: approved ones are sampled.",
        (),
    ),
    "quality_sample_ratio": (
        "Share of approved events that are remembered. Below 0.01 recall is noisy: raise quality.max_events.",
        (),
    ),
    "quality_labels_waiting": (
        "Labels whose score has not come. Growing while lag is 0: labels name events that were never scored, or name "
        "another time than their event.",
        (),
    ),
    "quality_last_turn_timestamp_seconds": ("When the loop last turned, Unix time. Older than a minute: it hangs.", ()),
}
_COUNTER_HELP = (
    "Score and label records by outcome: counted, too_old, unreadable; joined, repeated, revised, too_old, unsampled, "
    "unmatched, unreadable. unmatched labels: their events were never scored, or their timestamp differs."
)


class QualityMetrics(Collector):
    """Exposes the figures of the last `show`. Safe to collect in another thread: each `show` swaps the whole."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shown: list[Metric] = []
        registry.register(self)
        ProcessCollector(registry=registry)

    def describe(self) -> Iterator[Metric]:
        """Every family, without samples."""
        yield from (_gauge(name) for name in _HELP)
        yield _records()

    def collect(self) -> Iterator[Metric]:
        yield from self._shown

    def show(self, figures: Figures | None, book: Book, *, lag: int, turned_s: float) -> None:
        """Makes these what is exposed from now on."""
        gauges = {name: _gauge(name) for name in _HELP}
        if figures is not None:
            _fill_figures(gauges, figures)
        plain = {
            "quality_clock_timestamp_seconds": book.clock_ms / 1000,
            "quality_lag_events": lag,
            "quality_stored_events": book.stored,
            "quality_sample_ratio": 2.0**-book.halvings,
            "quality_labels_waiting": len(book.waiting_labels),
            "quality_last_turn_timestamp_seconds": turned_s,
        }
        for name, value in plain.items():
            gauges[name].add_metric([], value)
        counter = _records()
        for (kind, outcome), count in sorted(book.outcomes.items()):
            counter.add_metric([kind, outcome], count)
        self._shown = [*gauges.values(), counter]


def _fill_figures(gauges: Mapping[str, GaugeMetricFamily], figures: Figures) -> None:
    for (model, window), quality in figures.quality.items():
        where = (model, window)
        for name, values in (("ratio", quality.ratios), ("events", quality.counts), ("amount", quality.amounts)):
            _fill(gauges[f"quality_{name}"], ((key, *where) for key in values), values.values())
        kinds = {"scored": quality.with_model, "predicted": quality.predicted, "fraud": quality.observed}
        for kind, bins in kinds.items():
            keys = ((kind, label, *where) for label in _BIN_LABELS)
            _fill(gauges["quality_calibration_events"], keys, bins.tolist())
    for (model, window), drift in figures.drift.items():
        _fill(gauges["drift_psi"], ((name, model, window) for name in drift.psi), drift.psi.values())
        _fill(gauges["drift_events"], ((name, model, window) for name in drift.events), drift.events.values())
    groups = ((group,) for group in GROUPS)
    _fill(gauges["quality_label_completeness_ratio"], groups, figures.completeness.tolist())


def _gauge(name: str) -> GaugeMetricFamily:
    text, labels = _HELP[name]
    return GaugeMetricFamily(f"riskstream_{name}", text, labels=labels)


def _records() -> CounterMetricFamily:
    return CounterMetricFamily("riskstream_quality_records", _COUNTER_HELP, labels=("kind", "outcome"))


def _fill(family: GaugeMetricFamily, keys: Iterable[tuple[str, ...]], values: Iterable[float]) -> None:
    for key, value in zip(keys, values, strict=True):
        if math.isfinite(value):
            family.add_metric(key, value)
