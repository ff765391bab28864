"""Engine: where a worker's time goes, and what it waits for."""

from __future__ import annotations

from deploy.grafana.boards.queries import MINE, WORKER, percentile, rate_of
from deploy.grafana.panels import Board, Panel, Row

BOARD = Board(
    uid="riskstream-engine",
    title="riskstream / Engine",
    description="Where a worker's time goes, and what it waits for.",
    variables=[WORKER],
    rows=[
        Row(
            "A turn",
            [
                Panel(
                    "Time by stage",
                    "Wall time of a stage, 95th percentile. Bad: commit or load above 100 ms: Kafka or Redis is slow. "
                    "Fold or score: the worker is at its limit.",
                    [(percentile(0.95, "riskstream_stage_seconds", "le, stage"), "{{stage}}")],
                    unit="s",
                ),
                Panel(
                    "CPU per event by stage",
                    "CPU time of the engine's thread for one event. Bad: a stage that grew after a deployment.",
                    [
                        (
                            f"{rate_of('riskstream_stage_cpu_seconds_total', 'stage')} "
                            f"/ scalar({rate_of('riskstream_events_in_total')} > 0)",
                            "{{stage}}",
                        )
                    ],
                    unit="s",
                    stacked=True,
                ),
                Panel(
                    "Share of a core",
                    "CPU of each worker's engine thread and of its process. Bad: the thread near 100 %: saturated.",
                    [
                        (rate_of("riskstream_stage_cpu_seconds_total", "instance"), "{{instance}} engine"),
                        (
                            rate_of("process_cpu_seconds_total", "instance", MINE + ', job="riskstream"'),
                            "{{instance}} process",
                        ),
                    ],
                    unit="percentunit",
                    warn=0.8,
                ),
                Panel(
                    "Events per turn",
                    "Batch sizes. Bad: the median at batch.max_events: every turn is full, and lag grows.",
                    [(percentile(q, "riskstream_batch_events"), f"p{100 * q:g}") for q in (0.5, 0.95)],
                ),
                Panel(
                    "Commits",
                    "Transactions per second, and those aborted. Bad: aborts that go on after a rebalance.",
                    [
                        (rate_of("riskstream_commits_total"), "committed"),
                        (rate_of("riskstream_turns_aborted_total"), "aborted"),
                    ],
                    unit="ops",
                ),
                Panel(
                    "Time of a commit and of a flush",
                    "95th percentile. Bad: a commit above 100 ms (brokers' disks, replicas), a flush near "
                    "state.flush_interval_ms (Redis).",
                    [
                        (percentile(0.95, "riskstream_commit_seconds"), "commit"),
                        (percentile(0.95, "riskstream_flush_seconds"), "flush"),
                    ],
                    unit="s",
                    warn=0.1,
                ),
                Panel(
                    "Last turn",
                    "Seconds since the loop turned. Bad: above 60 s: the process hangs, and /livez fails.",
                    [(f"time() - riskstream_last_turn_timestamp_seconds{{{MINE}}}", "{{instance}}")],
                    unit="s",
                    bad=60,
                ),
                Panel(
                    "Memory of the process",
                    "Resident memory. Bad: growth that does not end once the arena is full.",
                    [(f'process_resident_memory_bytes{{{MINE}, job="riskstream"}}', "{{instance}}")],
                    unit="bytes",
                ),
                Panel(
                    "Labels that wait",
                    "Labels read and not yet folded. Bad: growing: the transactions before them are behind.",
                    [(f"riskstream_labels_waiting{{{MINE}}}", "{{instance}}")],
                ),
            ],
        ),
        Row(
            "Partitions",
            [
                Panel(
                    "Lag by partition",
                    "Bad: one line above the others: a hot account, or a partition that is restored.",
                    [
                        (
                            f"max by (topic, partition) (riskstream_consumer_lag_events{{{MINE}}})",
                            "{{topic}} {{partition}}",
                        )
                    ],
                ),
                Panel(
                    "Not yet in Redis",
                    "Committed events whose rows are in memory only: what a crash would replay. Bad: growing: flushes "
                    "fail.",
                    [(f"max by (partition) (riskstream_checkpoint_lag_events{{{MINE}}})", "{{partition}}")],
                ),
                Panel(
                    "Rebalances",
                    "Partitions given and taken. Bad: any `lost`: a worker missed its session; or a steady rate.",
                    [(f"sum by (kind) (increase(riskstream_rebalances_total{{{MINE}}}[10m]))", "{{kind}}")],
                ),
                Panel(
                    "Restoring",
                    "Partitions whose state is being restored. Bad: for longer than the replay that is left takes.",
                    [(f"sum by (instance) (riskstream_restoring{{{MINE}}})", "{{instance}}")],
                ),
                Panel(
                    "Events left to replay",
                    "Bad: a line that does not fall: the log is read too slowly, or Redis is away.",
                    [(f"sum by (partition) (riskstream_restore_remaining_events{{{MINE}}})", "{{partition}}")],
                ),
                Panel(
                    "Restores by kind",
                    "Bad: rebuild or cold without a first start or a new namespace: Redis lost its data.",
                    [(f"sum by (kind) (riskstream_restores_total{{{MINE}}})", "{{kind}}")],
                ),
            ],
        ),
        Row(
            "Rows",
            [
                Panel(
                    "Arena",
                    "Share of the rows in memory that are taken. Bad: 100 % with evictions: the working set does not "
                    "fit.",
                    [
                        (
                            f"max by (pool) (riskstream_arena_rows{{{MINE}}} / riskstream_arena_capacity_rows{{{MINE}}})",
                            "{{pool}}",
                        )
                    ],
                    unit="percentunit",
                    maximum=1,
                ),
                Panel(
                    "Misses and evictions",
                    "Rows asked of Redis, rows dropped to make room. Bad: both steady, long after a start.",
                    [
                        (rate_of("riskstream_arena_misses_total", "pool"), "miss {{pool}}"),
                        (rate_of("riskstream_arena_evictions_total", "pool"), "evicted {{pool}}"),
                    ],
                    unit="ops",
                ),
                Panel(
                    "Rows of Redis",
                    "Rows loaded, absent, written, skipped. Bad: `skipped` all the time: two workers write one "
                    "partition.",
                    [(rate_of("riskstream_redis_rows_total", "operation"), "{{operation}}")],
                    unit="ops",
                ),
                Panel(
                    "Errors of Redis",
                    "Bad: any. `unavailable`: workers wait or degrade; `state_lost`: Redis lost data.",
                    [(rate_of("riskstream_redis_errors_total", "kind"), "{{kind}}")],
                    unit="ops",
                ),
                Panel(
                    "Memory of Redis",
                    "Used, and the limit. Bad: 85 % of it: a full Redis refuses rows.",
                    [
                        ("max(riskstream_redis_memory_bytes)", "used"),
                        ("max(riskstream_redis_memory_limit_bytes)", "limit"),
                    ],
                    unit="bytes",
                ),
            ],
        ),
    ],
)
