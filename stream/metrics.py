"""Every metric of the engine, declared once. Each help text says what to do when the number is bad.

No account, card, address or event id may be the value of a label: labels are small closed sets.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.process_collector import ProcessCollector

from stream.instruments import BulkHistogram, StageTimer

LATENCY_BOUNDS_S = (
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    *(10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0, 150.0, 300.0, 600.0),
)
"""1 ms to 10 minutes, six steps a decade: a percentile read off them is at most half a step wrong."""

STAGE_BOUNDS_S = (0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SCORE_BOUNDS = tuple(float(upper) for upper in range(49, 1000, 50))
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)

STAGES = ("poll", "decode", "load", "fold", "score", "decide", "encode", "produce", "commit", "flush")
OUTCOMES = ("scored", "duplicate", "dead_letter")
MODEL_ROLES = ("champion", "challenger-1", "challenger-2", "challenger-3")
DECISIONS = ("approve", "review", "decline")
FLAGS = (
    "late", "saturated", "no_rate", "cold", "degraded", "rules_only",
    "shed_reasons", "shed_challengers", "shed_model", "shared",
)  # fmt: skip


class Metrics:
    """The engine's metrics in one registry. Attributes are the collectors; methods do what belongs together.

    `wall_clock` and `cpu_clock` give seconds; the CPU time is that of the calling thread alone.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        wall_clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.registry = registry
        self._gaps: dict[int, int] = {}
        self._model_labels: dict[tuple[Gauge, str], str] = {}
        self._declare_events()
        self._declare_time()
        self._declare_state()
        self._declare_surroundings()
        self._declare_models()
        self._begin_at_zero()
        self._stages = {
            stage: StageTimer(
                self.stage_seconds.labels(stage), self.stage_cpu_seconds.labels(stage), wall_clock, cpu_clock
            )
            for stage in STAGES
        }
        ProcessCollector(registry=registry)

    def stage(self, name: str) -> StageTimer:
        """`with metrics.stage("decode"): ...` for one of STAGES."""
        return self._stages[name]

    def watch_stages(self, watcher: Callable[[str, float], None]) -> None:
        """From now on `watcher(stage, seconds)` is called at the end of each."""
        for name, timer in self._stages.items():
            timer.watcher = functools.partial(watcher, name)

    def profile_table(self) -> str:
        """CPU and wall time by stage since the start, per event read: what `run --profile` prints."""
        events = sum(sample.value for family in self.events_in.collect() for sample in family.samples
                     if sample.name.endswith("_total"))  # fmt: skip
        wall = {
            sample.labels["stage"]: sample.value
            for family in self.stage_seconds.collect()
            for sample in family.samples
            if sample.name.endswith("_sum")
        }
        cpu = {
            sample.labels["stage"]: sample.value
            for family in self.stage_cpu_seconds.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
        per_event = 1e6 / max(events, 1.0)
        cpu["all"], wall["all"] = sum(cpu.values()), sum(wall.values())
        head = f"{'stage':<8} {'cpu s':>9} {'wall s':>9} {'cpu us/event':>13}"
        rows = [
            f"{stage:<8} {cpu[stage]:9.2f} {wall[stage]:9.2f} {cpu[stage] * per_event:13.1f}"
            for stage in (*STAGES, "all")
        ]
        return "\n".join([head, *rows, f"{events:,.0f} events"])

    def count_turn(self, partition: int, *, read: int, scored: int, duplicates: int, dead_letters: int) -> None:
        """Counts one committed turn of a partition, and sets its identity gap."""
        label = str(partition)
        self.events_in.labels(label).inc(read)
        for outcome, count in zip(OUTCOMES, (scored, duplicates, dead_letters), strict=True):
            self.events.labels(outcome, label).inc(count)
        self._gaps[partition] = self._gaps.get(partition, 0) + read - scored - duplicates - dead_letters
        self.identity_gap.labels(label).set(self._gaps[partition])

    def set_model(
        self,
        role: str,
        name: str,
        version: str,
        spec_id: str,
        *,
        review_by_ms: int | None = None,
        alert_rate: float | None = None,
    ) -> None:
        """`role` is champion, or challenger-1 to challenger-3; empty names: nobody has it.

        `review_by_ms` and `alert_rate` (expected share of suspicious events): the manifest's, None without one.
        """
        self.model.labels(role).info({"name": name, "version": version, "spec_id": spec_id})
        label = f"{name}@{version}"
        seconds = None if review_by_ms is None else review_by_ms / 1000
        for gauge, value in ((self.model_review_by, seconds), (self.expected_alert_rate, alert_rate)):
            former = self._model_labels.pop((gauge, role), None)
            if former is not None:
                gauge.remove(role, former)
            if value is not None:
                gauge.labels(role, label).set(value)
                self._model_labels[gauge, role] = label

    def forget_partition(self, partition: int, topics: Sequence[str]) -> None:
        """Removes the gauges of a partition that another worker has now; counters stay."""
        label = str(partition)
        # A gap is evidence: it stays until the process ends.
        for gauge in (self.restoring, self.restore_remaining, self.checkpoint_lag):
            with contextlib.suppress(KeyError):
                gauge.remove(label)
        for topic in topics:
            with contextlib.suppress(KeyError):
                self.consumer_lag.remove(topic, label)

    def _counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"riskstream_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"riskstream_{name}", documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(f"riskstream_{name}", documentation, labels, buckets=bounds, registry=self.registry)

    def _declare_events(self) -> None:
        self.events_in = self._counter(
            "events_in",
            "Events read from the transactions topic in committed turns. Zero while lag grows: look at "
            "riskstream_restoring, riskstream_turns_aborted_total and the log.",
            ["partition"],
        )
        self.events = self._counter(
            "events",
            "Events by outcome: scored, duplicate, dead_letter. Many dead letters: read the dead-letter topic, its "
            "reasons name the field. Many duplicates: a producer retries without idempotence.",
            ["outcome", "partition"],
        )
        self.identity_gap = self._gauge(
            "identity_gap_events",
            "Events read minus scored, duplicate and dead-lettered, since the start. Anything but 0 is a defect: run "
            "`riskstream audit` and report it.",
            ["partition"],
        )
        self.decisions = self._counter(
            "decisions",
            "Scored events by decision. A sudden shift: compare riskstream_score and riskstream_flags_total with "
            "yesterday, and check which model runs (riskstream_model_info).",
            ["decision"],
        )
        self.alerts = self._counter(
            "alerts",
            "Alerts published, by decision. More than the case team can take: raise the threshold in the decision "
            "policy. None at all: check the bundle and its thresholds.",
            ["decision"],
        )
        self.scores = BulkHistogram(
            "riskstream_score",
            "Scores from 0 to 999. A shape that differs from the bundle's report: input has drifted or a feature is "
            "missing; look at riskstream_flags_total, then retrain.",
            SCORE_BOUNDS,
            self.registry,
        )
        self.bands = self._counter(
            "bands",
            "Scored events by band. A band that swells while riskstream_model_info stands: the input has drifted; see "
            "`riskstream quality --once`.",
            ["band"],
        )
        self.flags = self._counter(
            "flags",
            "Scored events by flag (late, cold, degraded, no_rate, saturated, shared, rules_only...). no_rate: add "
            "the currency to the rates file. cold or degraded: state is missing, see Redis. late: a producer is "
            "behind.",
            ["flag"],
        )
        self.shed_step = self._gauge(
            "shed_step",
            "What is left out under pressure: 0 nothing, 1 reason codes, 2 challengers too, 3 the model too. "
            "Above 0: the worker is slower than its input and older than scoring.deadline_ms; add workers.",
        )
        self.shed_events = self._counter(
            "shed_events",
            "Events scored while something was left out, by step (reasons, challengers, model). Rising: add workers up "
            "to the number of partitions, or raise scoring.deadline_ms.",
            ["step"],
        )
        self.dead_letters = self._counter(
            "dead_letters",
            "Dead letters by stage and reason code. Read them in the dead-letter topic, correct the producer, then "
            "send the events again.",
            ["stage", "reason"],
        )
        self.missing_fields = self._counter(
            "missing_fields",
            "Valid events without an optional field (entities, latitude). Its share of riskstream_events_in_total "
            "jumps: a producer has stopped sending it, and features that need it are missing.",
            ["field"],
        )
        self.labels = self._counter(
            "labels",
            "Labels by outcome: folded, duplicate, dead_letter. None for days: the chargeback feed has stopped, and "
            "label-derived features grow stale.",
            ["outcome"],
        )
        self.labels_waiting = self._gauge(
            "labels_waiting",
            "Labels read and not yet folded. Growing: the worker is behind; add workers, or partitions if every one "
            "has a worker.",
        )

    def _declare_time(self) -> None:
        self.latency = BulkHistogram(
            "riskstream_event_latency_seconds",
            "From the source timestamp of an event to the commit of its score. High with low "
            "riskstream_stage_seconds: the events arrive late or the lag is large. High with high: see which stage.",
            LATENCY_BOUNDS_S,
            self.registry,
        )
        self.stage_seconds = self._histogram(
            "stage_seconds",
            "Wall time of one stage of a turn. Far above riskstream_stage_cpu_seconds_total: it waits for Kafka or "
            "Redis (commit, load, flush). Near it: more workers, or a smaller model.",
            STAGE_BOUNDS_S,
            ["stage"],
        )
        self.stage_cpu_seconds = self._counter(
            "stage_cpu_seconds",
            "CPU time of the engine's thread by stage. Divided by the rate of events it is the cost of one event: "
            "the largest stage is where speed work pays.",
            ["stage"],
        )
        self.batch_events = self._histogram(
            "batch_events",
            "Events per turn. Always at batch.max_events: the worker is saturated; add workers or raise it. Always "
            "1: fine when traffic is low.",
            BATCH_BOUNDS,
        )
        self.commit_seconds = self._histogram(
            "commit_seconds",
            "Time to commit one transaction. Above 100 ms: check the brokers' disks and in-sync replicas, and "
            "kafka.retry_backoff_ms.",
            STAGE_BOUNDS_S,
        )
        self.flush_seconds = self._histogram(
            "flush_seconds",
            "Time to write the dirty rows to Redis and the checkpoint. Near state.flush_interval_ms: Redis is the "
            "limit; give it a faster machine or lengthen the interval.",
            STAGE_BOUNDS_S,
        )
        self.last_turn = self._gauge(
            "last_turn_timestamp_seconds",
            "When the loop last turned, Unix time. Older than a minute: the process hangs; /livez fails, and the "
            "orchestrator restarts it.",
        )

    def _declare_state(self) -> None:
        self.arena_rows = self._gauge(
            "arena_rows",
            "Rows in memory by pool. At riskstream_arena_capacity_rows and evictions rise: enlarge "
            "state.arena_accounts or state.arena_entities.",
            ["pool"],
        )
        self.arena_capacity = self._gauge(
            "arena_capacity_rows",
            "Rows that fit into memory by pool: a setting (state.arena_accounts, state.arena_entities). Compare with "
            "riskstream_arena_rows.",
            ["pool"],
        )
        self.arena_evictions = self._counter(
            "arena_evictions",
            "Rows dropped from memory to make room. Steady: the working set does not fit; enlarge the arena or add "
            "workers.",
            ["pool"],
        )
        self.arena_misses = self._counter(
            "arena_misses",
            "Rows that had to be asked of Redis. High beside riskstream_events_total long after a start: enlarge the "
            "arena.",
            ["pool"],
        )
        self.redis_rows = self._counter(
            "redis_rows",
            "Rows by operation: loaded, absent, written, skipped (one that includes as much was there: the repetition "
            "of a flush that was cut short). Skipped all the time: report it as a bug.",
            ["operation"],
        )
        self.redis_errors = self._counter(
            "redis_errors",
            "Failed calls of Redis by kind: unavailable, not_authorised, state_lost. Run `riskstream doctor`; "
            "state_lost means that Redis lost data, or that another worker claimed the partition; it is restored.",
            ["kind"],
        )
        self.redis_memory = self._gauge(
            "redis_memory_bytes",
            "Memory that Redis uses, asked for every 10 s. Near riskstream_redis_memory_limit_bytes: raise maxmemory; "
            "a full server refuses rows, and workers wait.",
        )
        self.redis_memory_limit = self._gauge(
            "redis_memory_limit_bytes",
            "Redis's maxmemory, or the machine's memory where none is set (then set one). 0 where INFO is refused.",
        )
        self.restoring = self._gauge(
            "restoring",
            "1 while the partition's state is being restored, 0 when it runs. Long at 1: see "
            "riskstream_restore_remaining_events.",
            ["partition"],
        )
        self.restore_remaining = self._gauge(
            "restore_remaining_events",
            "Events still to replay before the partition runs. Not falling: the broker is slow or away. Large after "
            "every start: shorten state.flush_interval_ms or give Redis persistence.",
            ["partition"],
        )
        self.restores = self._counter(
            "restores",
            "Assignments by what had to be done: clean, replay, rebuild, cold. rebuild or cold outside a first "
            "start: Redis lost its data; check its persistence.",
            ["kind"],
        )
        self.checkpoint_lag = self._gauge(
            "checkpoint_lag_events",
            "Committed events whose rows are not in Redis yet: what a crash would replay. Growing: flushes fail; see "
            "riskstream_redis_errors_total.",
            ["partition"],
        )

    def _declare_surroundings(self) -> None:
        self.consumer_lag = self._gauge(
            "consumer_lag_events",
            "Events in the topic's partition after the committed offset. Growing: add workers up to the number of "
            "partitions, then look at riskstream_stage_cpu_seconds_total.",
            ["topic", "partition"],
        )
        self.commits = self._counter(
            "commits",
            "Committed transactions. Zero while riskstream_turns_aborted_total rises: read the log for the cause.",
        )
        self.aborts = self._counter(
            "turns_aborted",
            "Turns whose transaction was aborted and whose partitions were restored. A few at a rebalance are "
            "normal; a steady rate: check the brokers and kafka.transaction_timeout_ms.",
        )
        self.rebalances = self._counter(
            "rebalances",
            "Rebalance callbacks by kind: assigned, revoked, lost. Any lost: the worker missed its session; its "
            "turns are too long or it was paused. Frequent: give each worker a stable kafka.worker_id.",
            ["kind"],
        )

    def _declare_models(self) -> None:
        self.model_failures = self._counter(
            "model_failures",
            "Times that a model raised or gave NaN and was replaced by the one before it, or by rules only. Any: read "
            "the log, deploy a bundle that verifies.",
        )
        self.model_changes = self._counter(
            "model_changes",
            "Models that took a role, by role (champion, challenger-1...). After a deployment every worker must count "
            "one; which model runs says riskstream_model_info.",
            ["role"],
        )
        self.model_refusals = self._counter(
            "model_refusals",
            "Bundles that did not verify and were not taken, by role; the model that runs stays. Any: the log names "
            "the file or the check; deploy a bundle that `riskstream bundle verify` accepts.",
            ["role"],
        )
        self.shadow_decisions = self._counter(
            "shadow_decisions",
            "Events by the champion's decision and what a challenger would have decided. Many outside the diagonal: "
            "look at their labels before the challenger is promoted.",
            ["role", "champion", "challenger"],
        )
        self.shadow_difference = self._counter(
            "shadow_difference",
            "Sum of |champion's - challenger's probability|; by riskstream_shadow_decisions_total it is the mean "
            "difference. A jump: one of the two has drifted.",
            ["role"],
        )
        self.model = Info(
            "riskstream_model",
            "The models that score, by role (champion, challenger). None: rules only; see scoring.bundle and the log "
            "for the reason of a refusal.",
            ["role"],
            registry=self.registry,
        )
        self.model_review_by = self._gauge(
            "model_review_by_timestamp_seconds",
            "By when the bundle says that somebody should look whether its model still serves, Unix time. In the past: "
            "compare `riskstream quality --once` with the bundle's report, then train anew or set a new date.",
            ["role", "model"],
        )
        self.expected_alert_rate = self._gauge(
            "model_expected_alert_ratio",
            "Share of events that the bundle's thresholds made suspicious when it was validated. The share of "
            "riskstream_alerts_total far from it: the input has changed, or the policy has thresholds of its own.",
            ["role", "model"],
        )

    def _begin_at_zero(self) -> None:
        """Counters that alerts watch exist from the start: a first increase from nothing is not seen as one."""
        for counter, values in (
            (self.redis_errors, ("unavailable", "not_authorised", "state_lost")),
            (self.labels, ("folded", "duplicate", "dead_letter")),
            (self.model_refusals, MODEL_ROLES),
            (self.model_changes, MODEL_ROLES),
            (self.rebalances, ("assigned", "revoked", "lost")),
            (self.flags, FLAGS),
            (self.shed_events, ("reasons", "challengers", "model")),
            (self.decisions, DECISIONS),
            (self.alerts, DECISIONS[1:]),
        ):
            for value in values:
                counter.labels(value)
