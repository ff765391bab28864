"""Ratios, bars and the table. Bars are goals: what misses one stays, and is marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Cases = dict[str, Any]

ENGINES = {"engine": "engine", "engine_fast": "engine-fast"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A goal for one figure. `least`: at least so much, otherwise at most."""

    name: str
    value: float
    least: bool
    read: Callable[[dict[str, Any]], float | None]

    def holds(self, found: float) -> bool:
        return found >= self.value if self.least else found <= self.value


def ratios(cases: Cases) -> dict[str, float]:
    """What results are compared by. Each ratio divides figures of one run; absent where a case did not run.

    `*_to_model`: events per CPU second by those of the bare model, which is measured around each case.
    """
    found: dict[str, float | None] = {f"{name}_to_model": _to_model(cases.get(name)) for name in ("offline", "inside")}
    for name, case in ENGINES.items():
        found[f"{name}_to_model"] = _to_model(cases.get(case))
    for rival in ("quix", "tutorial"):
        for name, case in ENGINES.items():
            found[f"{name}_to_{rival}"] = _divided(_to_model(cases.get(case)), _to_model(cases.get(rival)))
    found["accounts_largest_to_smallest"] = _accounts(cases.get("accounts"))
    state = cases.get("state")
    found["state_bytes_to_packed"] = None if state is None else state["redis"]["row:account"]["to_packed"]
    workers = cases.get("workers")
    if workers is not None:
        found["workers_2_to_1"] = _divided(workers["two"]["events_per_s"], workers["one"]["events_per_s"])
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def latencies(cases: Cases) -> dict[str, dict[str, float]]:
    """Milliseconds by rate."""
    kept = ("p50", "p99", "p99.9", "p99.99", "max")
    rates = cases.get("latency", {}).get("rates", {})
    return {rate: {name: figures[name] for name in kept} for rate, figures in rates.items()}


def _to_model(case: dict[str, Any] | None) -> float | None:
    return None if case is None else _divided(case["events_per_cpu_s"], case["model_events_per_cpu_s"])


def _accounts(case: dict[str, Any] | None) -> float | None:
    if case is None:
        return None
    zipf = [figures["worker_us"] for name, figures in case["by"].items() if name.startswith("zipf")]
    return float(zipf[-1] / zipf[0])


def _divided(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _ratio(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda document: document["ratios"].get(name)


def _latency(rate: str, percentile: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda document: document["latency_ms"].get(rate, {}).get(percentile)


def _restore(part: str, figure: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda document: document["cases"].get("restore", {}).get(part, {}).get(figure)


BARS = (
    Bar("offline_to_model", 0.6, True, _ratio("offline_to_model")),
    Bar("engine_fast_to_model", 0.5, True, _ratio("engine_fast_to_model")),
    Bar("engine_to_model", 0.25, True, _ratio("engine_to_model")),
    Bar("engine_to_quix", 5, True, _ratio("engine_to_quix")),
    Bar("engine_fast_to_quix", 10, True, _ratio("engine_fast_to_quix")),
    Bar("engine_to_tutorial", 15, True, _ratio("engine_to_tutorial")),
    Bar("engine_fast_to_tutorial", 30, True, _ratio("engine_fast_to_tutorial")),
    *(
        Bar(f"latency_ms {rate} {percentile}", value, False, _latency(rate, percentile))
        for rate in ("2000", "2000 confluent")
        for percentile, value in (("p50", 12), ("p99", 25), ("p99.9", 50))
    ),
    Bar("accounts_largest_to_smallest", 1.3, False, _ratio("accounts_largest_to_smallest")),
    Bar("state_bytes_to_packed", 1.25, False, _ratio("state_bytes_to_packed")),
    Bar("workers_2_to_1", 1.7, True, _ratio("workers_2_to_1")),
    Bar("restore rows_per_s", 200_000, True, _restore("takeover", "rows_per_s")),
)


def print_tables(document: dict[str, Any], *, colour: bool) -> None:
    """The cases' main figures, then the bars."""
    print(f"\n{'case':<22} {'events/CPU s':>13} {'us/event':>9}  beside it")
    for name, figures in document["cases"].items():
        for row in _rows(name, figures):
            print(row)
    print(f"\n{'bar':<32} {'found':>11} {'goal':>13}")
    for bar in BARS:
        found = bar.read(document)
        if found is None:
            continue
        verdict = "met" if bar.holds(found) else "NOT MET"
        line = f"{bar.name:<32} {found:>11,.3f} {'>= ' if bar.least else '<= '}{bar.value:>10,g}  {verdict}"
        print(f"\033[31m{line}\033[0m" if colour and verdict != "met" else line)


def _rows(name: str, figures: dict[str, Any]) -> list[str]:
    """One line a measurement; a case of several has several."""
    if name == "latency":
        return [
            f"{f'latency {rate}/s':<22} {'':>13} {f['worker_us']:>9.1f}  "
            + ", ".join(f"{p} {f[p]:g}" for p in ("p50", "p99", "p99.9", "p99.99", "max"))
            + " ms"
            for rate, f in figures["rates"].items()
        ]
    if name == "accounts":
        return [
            f"{f'accounts {law}':<22} {f['events_per_cpu_s']:>13,.0f} {f['worker_us']:>9.1f}  "
            f"{f['account_misses_per_event']:.2f} misses an event"
            for law, f in figures["by"].items()
        ]
    if name == "workers":
        return [
            f"{f'workers {key}':<22} {f['events_per_cpu_s']:>13,.0f} {f['worker_us']:>9.1f}  "
            f"{f['events_per_s']:,.0f}/s wall; publishing {f['publish_us']:.1f}, audit {f['audit_us']:.1f} us an event"
            for key, f in figures.items()
        ]
    if name == "state":
        return [
            f"{f'state {kind}':<22} {'':>13} {'':>9}  packed {f['packed_bytes']:,.0f} bytes, in Redis "
            f"{f['redis_bytes']:,.0f} ({f['to_packed']:.2f})"
            for kind, f in figures["redis"].items()
        ] + [f"{'state arena':<22} {'':>13} {'':>9}  bytes a row: {figures['arena_bytes_per_row']}"]
    if name == "restore":
        takeover, replay = figures["takeover"], figures["replay"]
        return [
            f"{'restore takeover':<22} {'':>13} {'':>9}  {takeover['rows_per_s']:,.0f} rows/s",
            f"{'restore replay':<22} {replay['events_per_cpu_s']:>13,.0f} {'':>9}  "
            f"{replay['events_per_s']:,.0f}/s wall",
        ]
    rate = figures["events_per_cpu_s"]
    rest = "" if "events_per_s" not in figures else f"{figures['events_per_s']:,.0f}/s wall"
    if "kafka_us" in figures:
        rest += f"; broker {figures['kafka_us']:.1f}, Redis {figures['redis_us']:.1f} us an event"
    if "sequences_per_cpu_s" in figures:
        rest = f"features; an epoch {figures['sequences_per_cpu_s']:,.0f} sequences per CPU s"
    return [f"{name:<22} {rate:>13,.0f} {1e6 / rate:>9.1f}  {rest}"]
