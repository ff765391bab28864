"""Every setting: its default, its bounds, and the trade-off behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr


def _redis_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
        # An '@' or '#' behind the host means that a password with special characters was cut in two.
        whole = "@" not in parts.path + parts.query and not parts.fragment and (parts.port or 0) >= 0
        readable = whole and (
            parts.hostname is not None if parts.scheme in {"redis", "rediss"} else parts.scheme == "unix"
        )
    except ValueError:
        readable = False
    if readable and ("ssl_cert_reqs" in parts.query or "ssl_check_hostname" in parts.query):
        raise ValueError("certificates are always verified: leave this option out, and set redis.ssl_ca_file")
    if not readable:
        raise ValueError(
            "write redis://user:password@host:port/0, rediss:// for TLS; percent-encode special characters"
        )
    return url


def _brokers(servers: str) -> str:
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
            raise ValueError("write host:port of one or more brokers, comma separated")
    return servers


def _at_most_three(folders: str) -> str:
    if len([name for name in folders.split(",") if name.strip()]) > 3:
        raise ValueError("there are three places for challengers")
    return folders


RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
Brokers = Annotated[str, AfterValidator(_brokers)]
Folders = Annotated[str, AfterValidator(_at_most_three)]
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """Frozen; an unknown field is an error, so a misspelt setting cannot be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Section):
    bootstrap_servers: Brokers = Field(
        default="127.0.0.1:9092", description="host:port of one or more brokers, comma separated"
    )
    client: Literal["kafka-python", "confluent"] = Field(
        default="kafka-python", description="client library; confluent (the fast extra) takes less CPU per message"
    )
    group: str = Field(
        default="riskstream", min_length=1, description="consumer group; offsets and the state namespace hang on it"
    )
    worker_id: str = Field(
        default="worker-0",
        pattern=r"^[A-Za-z0-9._-]{1,80}$",
        description="stable per worker slot: static membership and transactional id; two workers must never share one",
    )
    session_timeout_ms: int = Field(
        default=10_000,
        ge=1_000,
        le=300_000,
        description="how long a dead worker keeps its partitions: lower takes over sooner, higher survives pauses",
    )
    heartbeat_interval_ms: int = Field(
        default=500,
        ge=100,
        description="at most a third of session_timeout_ms; a takeover may take the timeout and so much, a worker "
        "sends the broker a small request each time",
    )
    max_poll_interval_ms: int = Field(
        default=120_000, ge=5_000, description="longest turn before the group gives the partitions away"
    )
    transaction_timeout_ms: int = Field(
        default=15_000, ge=1_000, le=900_000, description="longest a transaction may stay open"
    )
    retry_backoff_ms: int = Field(
        default=2,
        ge=1,
        description="wait before a retry; kafka-python's own default of 100 costs 100 ms per transaction",
    )
    request_timeout_ms: int = Field(default=30_000, ge=1_000, description="longest wait for one answer of a broker")
    linger_ms: int = Field(default=0, ge=0, description="wait for fuller batches; a turn flushes anyway")
    fetch_max_bytes: int = Field(default=8_388_608, ge=65_536, description="most bytes per fetch")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to talk to the brokers"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="used when security_protocol is SASL_*"
    )
    sasl_username: str | None = Field(default=None, description="SASL user")
    sasl_password: SecretStr | None = Field(default=None, description="SASL password")
    ssl_ca_file: Path | None = Field(default=None, description="CA certificates (PEM)")
    ssl_cert_file: Path | None = Field(default=None, description="client certificate (PEM)")
    ssl_key_file: Path | None = Field(default=None, description="client key (PEM)")


class TopicSettings(Section):
    transactions: TopicName = Field(default="transactions", description="input: events")
    labels: TopicName = Field(
        default="labels", description="input: labels; same partition count and key as transactions"
    )
    scores: TopicName = Field(default="risk-scores", description="output: one record per event")
    alerts: TopicName = Field(default="alerts", description="output: one record per suspicious event")
    dead_letters: TopicName = Field(default="transactions.dlq", description="output: what could not be scored")
    models: TopicName = Field(
        default="models", description="compacted: which bundle scores from when on; see scoring.library"
    )


class RedisSettings(Section):
    url: RedisUrl = Field(default=SecretStr("redis://127.0.0.1:6379/0"), description="redis:// or rediss:// URL")
    ssl_ca_file: Path | None = Field(
        default=None, description="CA certificates (PEM) for rediss://; empty: the system's"
    )
    ssl_cert_file: Path | None = Field(default=None, description="client certificate (PEM) for rediss://")
    ssl_key_file: Path | None = Field(default=None, description="client key (PEM) for rediss://")
    namespace: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,80}$",
        description="prefix of all keys; empty: the consumer group's name",
    )
    key_secret: SecretStr = Field(
        default=SecretStr("riskstream"),
        min_length=8,
        description="secret of the keyed hash in key names; changing it starts a new state",
    )
    timeout_ms: int = Field(
        default=2_000, ge=10, le=60_000, description="longest wait for one answer; three tries are made"
    )
    row_ttl_days: int = Field(
        default=60, ge=31, description="frees rows that nobody wrote for so long; above the feature horizon of 30 days"
    )
    require_noeviction: bool = Field(default=True, description="refuse to start on a server that may evict rows")
    require_persistence: bool = Field(default=False, description="refuse to start on a server without AOF or RDB")


class BatchSettings(Section):
    max_events: int = Field(
        default=2_048, ge=1, le=10_000, description="most events per turn: more is cheaper per event, fewer is sooner"
    )
    max_wait_ms: int = Field(
        default=100,
        ge=0,
        le=1_000,
        description="longest that poll waits for the first event; a turn takes what is there",
    )
    linger_ms: int = Field(
        default=0,
        ge=0,
        le=1_000,
        description="a turn begins at least so long after the last, unless a full one waits: fewer, larger turns",
    )
    max_message_bytes: int = Field(default=65_536, ge=1_024, description="larger messages are dead letters")
    max_values: int = Field(
        default=8_192, ge=8_192, description="a message with more values (members, items) is a dead letter"
    )
    max_nesting: int = Field(default=16, ge=2, le=100, description="deeper JSON is a dead letter")
    future_tolerance_ms: int = Field(
        default=300_000, ge=0, description="an event later than its Kafka timestamp by more is a dead letter"
    )


class StateSettings(Section):
    arena_accounts: int = Field(
        default=131_072, ge=64, description="accounts kept in memory, about 5 KB each when used"
    )
    arena_entities: int = Field(
        default=65_536, ge=64, description="entities of each kind kept in memory, about 2 KB each when used"
    )
    flush_interval_ms: int = Field(
        default=100, ge=10, description="how long rows wait for Redis: longer is cheaper, shorter restores sooner"
    )
    entity_refresh_ms: int = Field(
        default=1_000, ge=10, description="age at which other partitions' entity values are read again"
    )
    entity_scope: Literal["all", "own"] = Field(
        default="all", description="own: aggregates use the own partition's entity values only"
    )
    on_missing_checkpoint: Literal["rebuild", "cold"] = Field(
        default="rebuild", description="W missing: replay the log, or start cold and flag every score"
    )
    on_truncated_log: Literal["refuse", "continue"] = Field(
        default="refuse", description="the log lost part of [W, C), or events behind C: stop, or go on and flag"
    )
    on_store_unavailable: Literal["pause", "degrade"] = Field(
        default="pause", description="Redis away and a row is needed: wait, or score without history, flagged"
    )
    rebuild_max_events: int = Field(
        default=5_000_000,
        ge=0,
        description="longest rebuild of a partition from the log's start; a longer one reads the horizon only and flags "
        "scores cold: higher keeps what features remember for life, lower runs again sooner (some 10,000 events/s)",
    )
    horizon_days: int = Field(default=30, ge=1, le=400, description="how far back windows look, and a long rebuild")


class ScoringSettings(Section):
    bundle: Path | None = Field(
        default=None, description="folder of the model bundle, or a symlink to it; without one: rules only, flagged"
    )
    challengers: Folders = Field(
        default="",
        description="folders of up to three bundles that score beside it and decide nothing, comma separated",
    )
    library: Path | None = Field(
        default=None,
        description="folder that all workers read, with the bundles that `riskstream model deploy` announces; empty: the models topic is not read",
    )
    watch_interval_ms: int = Field(
        default=1_000,
        ge=0,
        description="how often bundle folders and the models topic are looked at; 0: only at the start",
    )
    max_batch_ms: int = Field(default=100, ge=1, description="a bundle that takes longer for 256 events is refused")
    signature_key: SecretStr | None = Field(
        default=None,
        description="key of the bundles' signatures; with one, a bundle that is not signed with it is refused",
    )
    threads: int = Field(default=1, ge=1, le=64, description="torch threads per worker")
    deadline_ms: int = Field(
        default=0,
        ge=0,
        description="age (by Kafka's timestamp) at which an event is late for its decision: a worker that is behind by "
        "more and does not catch up leaves work out, flagged. Lower keeps decisions timely, higher keeps them whole; "
        "0: nothing is ever left out (replays and bulk loads of old events need that)",
    )
    shed: Literal["reasons", "challengers", "model"] = Field(
        default="model",
        description="the last step that may be left out under pressure: reason codes, then challengers, then the model "
        "(rules only)",
    )
    policy: Path | None = Field(
        default=None, description="YAML of the decision policy; empty: the bundle's thresholds, no rules"
    )
    rates: Path | None = Field(
        default=None, description="YAML of exchange rates; empty: the base currency only, others flagged no_rate"
    )

    @property
    def challenger_folders(self) -> list[Path]:
        return [Path(name.strip()) for name in self.challengers.split(",") if name.strip()]


class RecordSettings(Section):
    features: Literal["none", "alerts", "sample", "all"] = Field(
        default="none", description="which score records carry their feature values"
    )
    sample_rate: float = Field(
        default=0.01, ge=0, le=1, description="with features=sample: share of events, by a hash of the event id"
    )


class QualitySettings(Section):
    maturity_days: float = Field(
        default=14,
        gt=0,
        le=400,
        description="an event this old without a fraud label counts as genuine; longer is surer, and later",
    )
    max_events: int = Field(
        default=5_000_000,
        ge=1_000,
        description="events remembered for their labels, 32 bytes each; beyond it approved ones are sampled",
    )
    checkpoint: Path | None = Field(
        default=None, description="file that keeps the figures over a restart; empty: each start reads the topics again"
    )


class TraceSettings(Section):
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+(/\S*)?$",
        description="OTLP/HTTP address of a collector, such as http://127.0.0.1:4318/v1/traces; empty: no traces",
    )
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of turns traced though none of their events is sampled"
    )


class HttpSettings(Section):
    host: str = Field(
        default="127.0.0.1", description="address of /metrics, /livez, /readyz; loopback unless told otherwise"
    )
    port: Port = Field(default=0, description="0: a free port, printed at start")
    stalled_after_ms: int = Field(
        default=60_000, ge=1_000, description="/livez fails when the loop has not turned for so long"
    )


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level written")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, JSON elsewhere"
    )


class Settings(Section):
    domain: str = Field(
        default="stream.domains.payments:DOMAIN",
        pattern=r"^[\w.]+:\w+$",
        description="package.module:NAME of the domain declaration",
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    redis: RedisSettings = RedisSettings()
    batch: BatchSettings = BatchSettings()
    state: StateSettings = StateSettings()
    scoring: ScoringSettings = ScoringSettings()
    records: RecordSettings = RecordSettings()
    quality: QualitySettings = QualitySettings()
    traces: TraceSettings = TraceSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @property
    def state_namespace(self) -> str:
        return self.redis.namespace or self.kafka.group
