"""The composition root: the only place that knows which parts make a worker."""

from __future__ import annotations

import contextlib
import functools
import importlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from prometheus_client import CollectorRegistry

from stream import __version__, interpreter
from stream.clock import Clock, SystemClock
from stream.config import Settings
from stream.decisions.policy import DEFAULT_POLICY, Policy, load_policy
from stream.engine.building import CommittedOffsets, StateBuilder
from stream.engine.flush import RowKeeper, no_fault
from stream.engine.outputs import Judge, Situation
from stream.engine.partition import builder_name, check_count, transactional_id
from stream.engine.pipeline import Pipeline
from stream.engine.restoring import Restorer
from stream.engine.turn import Turn
from stream.engine.worker import Worker
from stream.errors import CertificateError, ConfigError, CredentialsError, FatalError, NotAuthorisedError
from stream.features.assemble import FeatureState
from stream.features.assemble import check as check_domain
from stream.features.money import Rates
from stream.features.spec import Domain
from stream.health import HealthServer, Status
from stream.history.batch import HistoryBatch
from stream.kafka.connect import client_of
from stream.kafka.port import KafkaClient, TopicPartition
from stream.metrics import Metrics
from stream.offline import HistoryReplay, RecordedLabels, Verdicts
from stream.quality.figures import Figures
from stream.quality.metrics import QualityMetrics
from stream.quality.observer import Observer
from stream.quality.reading import RecordReader, References
from stream.rollout.topic import ModelsTopic
from stream.rollout.watch import FolderSource, ModelWatch, Source, TopicSource
from stream.scoring.lineup import CHALLENGERS, CHAMPION, Change, Lineup
from stream.scoring.loading import load_scorer
from stream.scoring.scorer import Scorer
from stream.state.store import Checkpoint, StateStore
from stream.topics import partition_counts


def load_domain(settings: Settings) -> Domain:
    """The declaration that `settings.domain` names. ConfigError when there is none."""
    module, _, name = settings.domain.partition(":")
    try:
        domain = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"domain: {settings.domain!r} cannot be loaded ({error}); write package.module:NAME"
        ) from None
    if not isinstance(domain, Domain):
        raise ConfigError(f"domain: {settings.domain!r} is no Domain declaration")
    check_domain(domain)
    return domain


def connect(settings: Settings) -> KafkaClient:
    """The Kafka client that the settings choose. Connects when first used."""
    return client_of(settings.kafka)


def open_store(settings: Settings, domain: Domain) -> StateStore:
    """The page store. Connects when first used."""
    from stream.state.redis import RedisStore  # noqa: PLC0415

    return RedisStore(settings.redis, settings.state_namespace, domain.spec_id)


def load_rates(settings: Settings, domain: Domain) -> Rates:
    """The exchange rates; ConfigError when their base is not the domain's."""
    path = settings.scoring.rates
    rates = Rates.base_only(domain.base_currency) if path is None else Rates.load(path)
    if rates.base != domain.base_currency:
        raise ConfigError(f"scoring.rates: the base is {rates.base}, the domain's is {domain.base_currency}")
    return rates


def policy_of(settings: Settings) -> Policy:
    return load_policy(settings.scoring.policy) if settings.scoring.policy else DEFAULT_POLICY


def build_worker(
    settings: Settings,
    domain: Domain,
    client: KafkaClient,
    store: StateStore,
    metrics: Metrics,
    *,
    scorer: Scorer | None,
    clock: Clock,
    challengers: Sequence[Scorer] = (),
    model_changes: Callable[[], Sequence[Change]] = tuple,
    make_turn: Callable[..., Turn] = Turn,
    fault: Callable[[str], None] = no_fault,
) -> Worker:
    """A worker over these ports. TopicError when the topics are not as they must be.

    It begins with the champion `scorer` and the challengers; `model_changes` as in Worker.
    """
    check_arena(settings)
    partitions = check_worker_topics(settings, client)
    rates = load_rates(settings, domain)
    share = settings.state.entity_scope == "all" and partitions[settings.topics.transactions] > 1
    state = FeatureState(
        domain, accounts=settings.state.arena_accounts, entities=settings.state.arena_entities, use_others=share
    )
    lineup = Lineup(scorer)
    keeper = RowKeeper(state, store, metrics, share_entities=share, fault=fault)
    pipeline = Pipeline(domain, rates, settings.batch, state, lineup, metrics)
    judge = Judge(domain, policy_of(settings), settings.records, rates_version=rates.version)
    inputs = partitions[settings.topics.transactions]
    same = {topic for topic, count in partitions.items() if count == inputs}
    turn = make_turn(
        settings, pipeline, judge, keeper, metrics, clock, engine_version=__version__, same_partitions=same
    )
    restorer = Restorer(
        settings, client, store, keeper, pipeline, metrics, clock,
        scores_aligned=settings.topics.scores in same, fault=fault,
    )  # fmt: skip
    for role, one in zip(CHALLENGERS, challengers, strict=False):
        lineup.apply(Change(role, one))
    for role, named in zip((CHAMPION, *CHALLENGERS), (scorer, *challengers), strict=False):
        if named is not None:
            pipeline.show_model(role, named)
    return Worker(
        settings,
        client,
        keeper,
        turn,
        restorer,
        metrics,
        clock,
        partitions=inputs,
        model_changes=model_changes,
        fault=fault,
    )


def open_traces(settings: Settings, metrics: Metrics) -> tuple[Callable[..., Turn], Callable[[], None]]:
    """How turns are made, and what ends the export of their spans. ConfigError when the extra is not installed."""
    if settings.traces.endpoint is None:
        return Turn, lambda: None
    try:
        from stream.traces import Spans, TracedTurn  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise ConfigError(
            f"traces.endpoint needs the otel extra ({error}): pip install 'riskstream[otel]', or leave it empty"
        ) from None
    spans = Spans(settings, metrics)
    return functools.partial(TracedTurn, spans=spans), spans.close


def state_parts(
    settings: Settings,
    client: KafkaClient,
    store: StateStore,
    domain: Domain,
    clock: Clock,
    partitions: int,
    *,
    scores_aligned: bool,
) -> tuple[RowKeeper, Restorer]:
    """What folds the log into rows and writes them, for a builder of state. `scores_aligned`: see Restorer."""
    metrics = Metrics(CollectorRegistry())
    share = settings.state.entity_scope == "all" and partitions > 1
    state = FeatureState(
        domain, accounts=settings.state.arena_accounts, entities=settings.state.arena_entities, use_others=share
    )
    keeper = RowKeeper(state, store, metrics, share_entities=share)
    pipeline = Pipeline(domain, load_rates(settings, domain), settings.batch, state, Lineup(None), metrics)
    owner = builder_name(settings)
    restorer = Restorer(
        settings, client, store, keeper, pipeline, metrics, clock, scores_aligned=scores_aligned, owner=owner
    )
    return keeper, restorer


def build_state(
    settings: Settings,
    client: KafkaClient,
    store: StateStore,
    domain: Domain,
    clock: Clock,
    stop: threading.Event,
    *,
    follow: bool,
    quick_s: float,
    tell: Callable[[int, int], None],
) -> tuple[Mapping[int, Checkpoint | None], int]:
    """Builds the state of `settings` beside the group's workers (engine/building.py). Blocks.

    Returns W by partition, and until when (ms) scores from this state will be flagged cold; 0: they will not.

    Ends when a round took less than `quick_s`; with `follow`, when `stop` is set or workers have taken over all.
    """
    check_arena(settings)
    settings = settings.model_copy(
        update={"state": settings.state.model_copy(update={"on_missing_checkpoint": "rebuild"})}
    )
    counts = check_worker_topics(settings, client)
    partitions = counts[settings.topics.transactions]
    aligned = counts[settings.topics.scores] == partitions
    keeper, restorer = state_parts(settings, client, store, domain, clock, partitions, scores_aligned=aligned)
    with contextlib.closing(client.reader()) as reader, contextlib.closing(client.admin()) as admin:
        offsets = CommittedOffsets(reader, admin, settings.kafka.group)
        builder = StateBuilder(settings, store, keeper, restorer, offsets, clock, partitions)
        builder.check()
        while not stop.is_set() and builder.positions:
            took_s = builder.round(stop, tell)
            if took_s < quick_s and not follow:
                break
            if follow:
                stop.wait(max(0.0, 1.0 - took_s))
        return builder.positions, builder.cold_until_ms


def model_watch(settings: Settings, domain: Domain, client: KafkaClient, metrics: Metrics) -> ModelWatch:
    """What looks for new bundles: the folders of the settings and, with a library, the models topic."""
    scoring = settings.scoring
    sources: list[Source] = []
    watch = ModelWatch(
        sources, lambda folder: load_scorer(folder, domain, scoring), metrics, interval_ms=scoring.watch_interval_ms
    )
    if scoring.bundle is not None:
        sources.append(FolderSource(CHAMPION, scoring.bundle))
    for role, folder in zip(CHALLENGERS, scoring.challenger_folders, strict=False):
        sources.append(FolderSource(role, folder))
    if scoring.library is not None:
        # Its moments decide over the folder's, which counts from the next turn on: so it comes last.
        sources.append(TopicSource(ModelsTopic(client, settings.topics.models), scoring.library, watch.refuse))
    return watch


def check_arena(settings: Settings) -> None:
    """ConfigError when one turn could need more rows than fit."""
    least = 2 * settings.batch.max_events
    for name in ("arena_accounts", "arena_entities"):
        value = getattr(settings.state, name)
        if value < least:
            raise ConfigError(f"state.{name} = {value}: must be at least twice batch.max_events, {least}")


def check_topics(settings: Settings, client: KafkaClient) -> dict[str, int]:
    """Partition counts of the five topics. TopicError when one is missing or the inputs differ."""
    with contextlib.closing(client.admin()) as admin:
        return partition_counts(admin, settings)


def check_worker_topics(settings: Settings, client: KafkaClient) -> dict[str, int]:
    """The same, and TopicError when the inputs were given more partitions since the group began."""
    counts = check_topics(settings, client)
    with contextlib.closing(client.admin()) as admin:
        check_count(admin, settings, counts[settings.topics.transactions])
    return counts


def check_store(store: StateStore) -> None:
    """Refuses a store that may lose rows behind our back, or lacks a right. One that is away or full is waited for.

    ConfigError, NotAuthorisedError, CredentialsError, CertificateError.
    """
    kinds = {
        "redis rights": NotAuthorisedError,
        "redis credentials": CredentialsError,
        "redis certificate": CertificateError,
    }
    for finding in store.check():
        if finding.level == "error" and finding.subject in kinds:
            raise kinds[finding.subject](finding.message)
        if finding.level == "error" and finding.subject not in ("redis", "redis memory"):
            raise ConfigError(f"{finding.subject}: {finding.message}. {finding.remedy}")


def health_of(worker: Worker, clock: Clock) -> Status:
    """The worker's state in the words of the health checks."""
    since_ms = int((clock.monotonic() - worker.last_turn) * 1000)
    waiting = "redis" if worker.waiting_for_store else ""
    return Status(since_ms, worker.assigned, worker.restoring(), waiting)


class OfflineScorer:
    """The worker's pipeline and judge over a replayed history: no Kafka, no Redis."""

    def __init__(
        self,
        settings: Settings,
        domain: Domain,
        scorer: Scorer | None,
        clock: Clock,
        *,
        partitions: int = 1,
        labels: Verdicts | RecordedLabels = "fraud",
    ) -> None:
        """`partitions` and `labels` as in offline.HistoryReplay."""
        metrics, rates = Metrics(CollectorRegistry()), load_rates(settings, domain)
        self._replay = HistoryReplay(domain, rates, metrics, partitions=partitions, labels=labels)
        lineup = Lineup(scorer)
        self._pipeline = Pipeline(domain, rates, settings.batch, self._replay.state, lineup, metrics)
        self._judge = Judge(domain, policy_of(settings), settings.records, rates_version=rates.version)
        self._topic, self._clock = settings.topics.transactions, clock
        self.duplicates = 0

    def records(self, batches: Iterable[HistoryBatch]) -> Iterator[list[dict[str, Any]]]:
        """Score records, as Kafka's but for `scored_at` and the entity view: a list per stretch of the history."""
        for replayed in self._replay.run(batches):
            batch = replayed.batch
            scored = self._pipeline.score(batch, replayed.assembled)
            self.duplicates += len(batch) - len(scored.index)
            situation = Situation(
                origins=[
                    {"topic": self._topic, "partition": p, "offset": o}
                    for p, o in zip(batch.partition.tolist(), batch.offset.tolist(), strict=True)
                ],
                labels_offset=replayed.labels_offset.tolist(),
                cold=np.zeros(len(batch), dtype=np.bool_),
                degraded=np.zeros(len(batch), dtype=np.bool_),
                now_ms=self._clock.now_ms(),
            )
            yield self._judge.score_records(self._judge.judge(scored, situation), situation)


def run_worker(settings: Settings, *, profile: bool = False) -> int:
    """Runs one worker until SIGTERM or SIGINT; returns the exit code. Blocks.

    FatalError, ConfigError and BundleRefused leave through their own exit codes (stream/errors.py).
    """
    clock, registry = SystemClock(), CollectorRegistry()
    metrics = Metrics(registry)
    log = structlog.get_logger("riskstream")
    domain = load_domain(settings)
    scorer = None
    if settings.scoring.bundle is not None:
        scorer = load_scorer(settings.scoring.bundle, domain, settings.scoring)
    challengers = [load_scorer(folder, domain, settings.scoring) for folder in settings.scoring.challenger_folders]
    client = connect(settings)
    watch = model_watch(settings, domain, client, metrics)
    store = open_store(settings, domain)
    check_store(store)
    make_turn, close_traces = open_traces(settings, metrics)
    worker = build_worker(
        settings,
        domain,
        client,
        store,
        metrics,
        scorer=scorer,
        clock=clock,
        challengers=challengers,
        model_changes=watch.take,
        make_turn=make_turn,
    )
    watch.start()
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    health = HealthServer(settings.http, registry, lambda: health_of(worker, clock))
    port = health.start()
    model = scorer.manifest.label if scorer is not None else None
    log.info("started", model=model, spec_id=domain.spec_id, http_port=port, id=transactional_id(settings))
    interpreter.settle()
    try:
        worker.run(stop)
    except FatalError as error:
        log.error("stopped", error=str(error), exit_code=error.exit_code)
        raise
    finally:
        watch.stop()
        health.stop()
        store.close()
        close_traces()
    log.info("stopped", exit_code=0)
    if profile:
        print(metrics.profile_table())
    return 0


def build_observer(
    settings: Settings, client: KafkaClient, metrics: QualityMetrics, bundles: Sequence[Path], clock: Clock
) -> Observer:
    """What `riskstream quality` runs, not started. TopicError, UnavailableError."""
    domain = load_domain(settings)
    counts = check_topics(settings, client)
    scores, labels = (
        [TopicPartition(topic, number) for number in range(counts[topic])]
        for topic in (settings.topics.scores, settings.topics.labels)
    )
    records = RecordReader(domain, load_rates(settings, domain))
    secret = settings.scoring.signature_key
    key = secret.get_secret_value().encode() if secret is not None else None
    reader = client.reader()
    return Observer(
        settings.quality, reader, records, References(bundles, key), metrics, clock, scores=scores, labels=labels
    )


def quality_health(observer: Observer, clock: Clock) -> Status:
    """Ready once it has been at the end of the topics: before that, it shows no figures."""
    since_ms = int((clock.monotonic() - observer.last_turn) * 1000)
    behind = {} if observer.caught_up else {0: observer.lag or 0}
    return Status(since_ms, 1, behind, "kafka" if observer.waiting else "")


def run_quality(settings: Settings, bundles: Sequence[Path], *, once: bool = False) -> Figures | None:
    """Measures until SIGTERM or SIGINT; with `once`, reads what is there and returns the figures. Blocks."""
    clock, registry = SystemClock(), CollectorRegistry()
    observer = build_observer(settings, connect(settings), QualityMetrics(registry), bundles, clock)
    observer.start()
    if once:
        return observer.run_to_end()
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    health = HealthServer(settings.http, registry, lambda: quality_health(observer, clock))
    structlog.get_logger("riskstream").info("started", http_port=health.start())
    try:
        observer.run(stop)
    finally:
        health.stop()
    return None
