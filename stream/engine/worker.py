"""The loop: one worker of the group, its partitions, its transactions.

A partition's life:

    ASSIGNED --> RESTORING --> RUNNING --> PARKED (revoked, flushed, rows kept) --> dropped
       ^                        |   ^         |
       +-- aborted, state lost -+   +---- RETURNED (given back) --> ASSIGNED, if somebody touched it

`run` is the life, `run_once` one turn. The rebalance callbacks are plain methods, run inside `poll` on
this thread; what takes long or may fail is left to the turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import structlog

from stream.clock import Clock
from stream.config import Settings
from stream.engine import inputs
from stream.engine.flush import RowKeeper, no_fault
from stream.engine.inputs import Share
from stream.engine.partition import METADATA_LIMIT, Partition, Phase, numbers_assigned, transactional_id
from stream.engine.restoring import Restorer
from stream.engine.transactions import Transactions
from stream.engine.turn import Turn, TurnResult
from stream.errors import DeadLetterError, FatalError, StateLostError, TurnAborted, UnavailableError
from stream.kafka.port import CommittedOffset, Consumer, KafkaClient, TopicPartition
from stream.metrics import Metrics
from stream.scoring.lineup import Change
from stream.state.store import Checkpoint

_RETRY_WAIT_MS = 100
_ASK_LAG_EVERY_S = 1.0
_QUIET_AFTER_S = 10.0
"""After so long without a turn, C moves past the markers of transactions."""


class Worker:
    """Runs until told to stop. One thread owns it; the properties above `run` may be read from others."""

    def __init__(
        self,
        settings: Settings,
        client: KafkaClient,
        keeper: RowKeeper,
        turn: Turn,
        restorer: Restorer,
        metrics: Metrics,
        clock: Clock,
        *,
        partitions: int,
        model_changes: Callable[[], Sequence[Change]] = tuple,
        fault: Callable[[str], None] = no_fault,
    ) -> None:
        """`partitions`: how many the inputs have.

        `model_changes` gives the models that became ready since it was last called. It must not block.
        """
        self._model_changes = model_changes
        self._settings, self._client, self._clock, self._metrics = settings, client, clock, metrics
        self._keeper, self._turn, self._restorer = keeper, turn, restorer
        self._fault, self._count = fault, partitions
        self._partitions: dict[int, Partition] = {}
        self._consumer: Consumer = client.consumer()
        self._transactions = Transactions(client.producer(transactional_id(settings)), self._consumer, metrics, fault)
        self._paused_topics: set[str] = set()
        self._ends: dict[TopicPartition, int] = {}
        self._waiting_for_store = False
        self._turns = 0
        self._restore_at = 0.0
        self._last_flush = self._last_turn = self._last_done = self._last_lag = clock.monotonic()
        self._log = structlog.get_logger("riskstream.worker")

    @property
    def last_turn(self) -> float:
        """Clock.monotonic() of the last time the loop came round."""
        return self._last_turn

    @property
    def assigned(self) -> int:
        """Partitions that this worker holds."""
        return len(self._partitions)

    @property
    def waiting_for_store(self) -> bool:
        return self._waiting_for_store

    def restoring(self) -> dict[int, int]:
        """Partition -> events still to replay, of those that do not run yet."""
        partitions = list(self._partitions.values())
        return {p.number: self._restorer.remaining(p.number) for p in partitions if p.phase is not Phase.RUNNING}

    # --- life

    def run(self, stop: threading.Event) -> None:
        """Blocks until `stop` is set, then finishes: flush, leave the group. FatalError ends it at once."""
        self.start()
        try:
            while not stop.is_set():
                try:
                    self.run_once()
                    stop.wait(self._gathers_s())
                except UnavailableError as error:
                    # Kafka is away between two turns: nothing has been taken, so nothing is lost by asking again.
                    self._log.warning("Kafka is away", error=str(error))
                    stop.wait(_RETRY_WAIT_MS / 1000)
            self.finish()
        finally:
            self._transactions.close()

    def start(self) -> None:
        """Fences a former worker of this id, joins the group."""
        self._transactions.start()
        topics = self._settings.topics
        self._consumer.subscribe([topics.transactions, topics.labels], self)

    def finish(self) -> None:
        """Everything is committed between turns: flush, leave the group."""
        self._pass_markers()
        try:
            self._flush(self._with_rows())
        except (UnavailableError, StateLostError) as error:
            self._log.warning("flush at the end failed; the next owner replays", error=str(error))
        for number in self._partitions:
            self._restorer.forget(number)
        self._consumer.close(leave_group=True)

    def run_once(self) -> None:
        """One turn:

        1. poll (the rebalance callbacks run here); end a transaction that failed
        2. one step for each partition that is restoring
        3. models that became ready take their roles; then take what is due, labels first, then transactions
           (nothing while a flush or an abort is owed)
        4. load rows, fold, score, decide (turn.py)
        5. one transaction: outputs and offsets
        6. flush rows, if it is time; see to what a worker without work would not notice
        """
        self._last_turn = self._clock.monotonic()
        self._metrics.last_turn.set(self._clock.now_ms() / 1000)
        self._poll()
        self._transactions.end_failed()
        self._restore_some()
        self._turn.change_models(self._model_changes())
        if not (self._transactions.failed or self._must_flush()):
            shares = inputs.take(self._in_turn(), self._caught_up(), self._turn.most_events)
            if shares:
                self._do(shares)
        self._flush_if_due()
        self._when_quiet()

    # --- rebalance

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Every partition begins RESTORING; one that is given back untouched goes on (see _restore_some)."""
        self._metrics.rebalances.labels("assigned").inc()
        mine = numbers_assigned(partitions, self._settings.topics, self._count)
        for number in [n for n in self._partitions if n not in mine]:
            self._drop(number)
        for number in mine:
            partition = self._partitions.setdefault(number, Partition(number, of=self._count))
            if partition.phase is Phase.PARKED:
                partition.phase = Phase.RETURNED
        self._consumer.pause(self._inputs_of(mine))
        self._paused_topics.clear()
        self._log.info("assigned", partitions=sorted(mine))

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Still the owner, and nothing is uncommitted between turns: flush, keep the rows for a while."""
        self._metrics.rebalances.labels("revoked").inc()
        numbers = {tp.partition for tp in partitions}
        going = [p for n, p in self._partitions.items() if n in numbers]
        try:
            self._flush([p for p in going if p.phase is Phase.RUNNING and not p.degraded])
        except (UnavailableError, StateLostError) as error:
            self._log.warning("flush on revocation failed; the next owner replays", error=str(error))
        for partition in going:
            clean = partition.phase is Phase.RUNNING and partition.checkpoint == partition.done
            if clean and not partition.degraded:
                partition.phase = Phase.PARKED
                partition.waiting_labels.clear()
                partition.waiting_records.clear()
            else:
                self._drop(partition.number)

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """No longer the owner: forget, write nothing."""
        self._metrics.rebalances.labels("lost").inc()
        for number in {tp.partition for tp in partitions}:
            self._drop(number)

    def _drop(self, number: int) -> None:
        if self._partitions.pop(number, None) is not None:
            self._restorer.forget(number)
            self._keeper.drop(number)
            topics = self._settings.topics
            self._metrics.forget_partition(number, (topics.transactions, topics.labels))
            for tp in self._inputs_of([number]):
                self._ends.pop(tp, None)

    # --- one turn

    def _gathers_s(self) -> float:
        """How long events may gather before the next turn, in seconds: 0 where a full one waits, or a restore."""
        rest = self._last_turn + self._settings.batch.linger_ms / 1000 - self._clock.monotonic()
        running = self._running() if rest > 0 else []
        if not running or len(running) < len(self._partitions):
            return 0.0
        topic = self._settings.topics.transactions
        waiting = sum(self._lag(TopicPartition(topic, p.number), p.done.transactions) for p in running)
        return 0.0 if waiting >= self._turn.most_events else rest

    def _poll(self) -> None:
        """Fills the queues up to a full turn. Of a topic of which two wait no more is read: memory stays bounded.

        By topic, because labels may wait for transactions that are not read yet. A topic stands still seldom, for
        librdkafka fetches anew what it had when it goes on, which may take as long as an idle fetch (0.5 s).
        """
        running = self._running()
        topics, limit = self._settings.topics, self._settings.batch.max_events
        events = sum(len(p.waiting_records) for p in running)
        labels = sum(len(p.waiting_labels) for p in running)
        for topic, queued in ((topics.transactions, events), (topics.labels, labels)):
            stands = topic in self._paused_topics
            if (queued >= (limit if stands else 2 * limit)) != stands:
                change = self._consumer.resume if stands else self._consumer.pause
                change([TopicPartition(topic, p.number) for p in running])
                self._paused_topics ^= {topic}
        busy = events + labels > 0 or len(running) < len(self._partitions)
        wait_ms = _RETRY_WAIT_MS if self._waiting_for_store else 0 if busy else self._settings.batch.max_wait_ms
        with self._metrics.stage("poll"):
            polled = self._consumer.poll(max(1, limit - events), wait_ms)
        self._fault("turn:after_poll")
        for tp, records in polled.items():
            partition = self._partitions.get(tp.partition)
            if partition is None or partition.phase is not Phase.RUNNING:
                continue  # it is sought back to its committed offset when it runs
            is_label = tp.topic == topics.labels
            (partition.waiting_labels if is_label else partition.waiting_records).extend(records)

    def _do(self, shares: list[Share]) -> None:
        try:
            result = self._turn.run(shares, self.flush_all)
        except UnavailableError as error:
            inputs.put_back(shares)
            self._store_is_away([share.partition for share in shares], error)
            return
        except StateLostError as error:
            self._start_over((share.partition for share in shares), error)
            return
        self._waiting_for_store = False
        self._fault("turn:after_fold")
        try:
            self._commit(shares, result)
        except (TurnAborted, UnavailableError) as error:
            self._log.warning("transaction aborted", error=str(error))
            self._start_over((share.partition for share in shares), error)
            return
        except FatalError as error:
            topic = self._settings.topics.dead_letters
            if type(error) is FatalError and any(message.topic == topic for message in result.messages):
                raise DeadLetterError(f"a dead letter cannot be written to {topic}: {error}") from error
            raise
        self._last_done = self._clock.monotonic()
        self._turn.count(shares, result)
        self._measure([share.partition for share in shares])
        self._fault("turn:after_commit")

    def _commit(self, shares: list[Share], result: TurnResult) -> None:
        offsets: dict[TopicPartition, CommittedOffset] = {}
        for share in shares:
            partition = share.partition
            before = partition.done
            partition.done = share.end()
            if partition.done.labels > before.labels:
                partition.note_labels(before)
            offsets |= self._offsets_of(partition)
        self._transactions.publish(result.messages, offsets)

    def _offsets_of(self, partition: Partition) -> dict[TopicPartition, CommittedOffset]:
        said = partition.committed(transactional_id(self._settings))
        return dict(zip(self._inputs_of([partition.number]), said, strict=True))

    def _when_quiet(self) -> None:
        """While nothing is read or restored, no fetch tells how far the topics have grown: asks them now and then."""
        now = self._clock.monotonic()
        stands = self._waiting_for_store or self._paused_topics or len(self._running()) < len(self._partitions)
        if stands and now - self._last_lag >= _ASK_LAG_EVERY_S:
            self._last_lag = now
            self._measure(self._partitions.values(), ask=True)
        if now - self._last_done >= _QUIET_AFTER_S:
            self._last_done = now
            self._pass_markers()

    def _pass_markers(self) -> None:
        """Where nothing waits, C moves past the markers of transactions that lie behind the last event.

        A log that expires down to its end would else seem to have lost events that were never scored.
        """
        for partition in self._running():
            if partition.degraded or partition.waiting_records or partition.waiting_labels:
                continue
            before = partition.done
            try:
                places = [self._consumer.position(tp) for tp in self._inputs_of([partition.number])]
                if places == list(before) or min(places[0] - before.transactions, places[1] - before.labels) < 0:
                    continue
                partition.done = Checkpoint(*places)
                if partition.done.labels > before.labels:
                    partition.note_labels(before)
                self._transactions.commit(self._offsets_of(partition))
            except (TurnAborted, UnavailableError) as error:
                self._start_over([partition], error)

    def _start_over(self, partitions: Iterable[Partition], error: Exception) -> None:
        """The error path is the start path: forget the rows, restore."""
        if isinstance(error, StateLostError):
            self._metrics.redis_errors.labels("state_lost").inc()
        for number in [partition.number for partition in partitions]:
            self._log.warning("partition starts over", partition=number, error=str(error))
            self._drop(number)
            if TopicPartition(self._settings.topics.transactions, number) in self._consumer.assignment():
                self._partitions[number] = Partition(number, of=self._count)
                self._consumer.pause(self._inputs_of([number]))

    def _store_is_away(self, partitions: Iterable[Partition], error: Exception) -> None:
        """By policy: turns wait, or these partitions go on without history, flagged, and are restored afterwards."""
        if not self._waiting_for_store:
            self._log.warning("the store is away", error=str(error), policy=self._settings.state.on_store_unavailable)
        self._metrics.redis_errors.labels("unavailable").inc()
        self._waiting_for_store = True
        if self._settings.state.on_store_unavailable == "degrade":
            for partition in partitions:
                partition.degraded = True
            self._waiting_for_store = False

    # --- restoring and flushing

    def _restore_some(self) -> None:
        if self._clock.monotonic() < self._restore_at:
            return
        self._restorer.next_round()
        for partition in [p for p in self._partitions.values() if p.phase not in (Phase.RUNNING, Phase.PARKED)]:
            try:
                self._restore_step(partition)
                self._waiting_for_store = False
            except UnavailableError as error:
                self._log.warning("restore waits", partition=partition.number, error=str(error))
                self._metrics.redis_errors.labels("unavailable").inc()
                self._waiting_for_store = True
                self._degrade(partition)
            except TurnAborted as error:
                # Whoever is out of the group hears of it by a heartbeat; to ask at once again would only burden Kafka.
                self._restore_at = self._clock.monotonic() + _RETRY_WAIT_MS / 1000
                self._start_over([partition], error)
                return

    def _degrade(self, partition: Partition) -> None:
        """By policy, a partition that cannot be restored now runs without its history."""
        if self._settings.state.on_store_unavailable == "degrade":
            try:
                if self._restorer.begin_degraded(partition, self._consumer, self._transactions):
                    self._begin_running(partition)
            except TurnAborted as error:
                self._start_over([partition], error)

    def _restore_step(self, partition: Partition) -> None:
        if partition.phase is Phase.RETURNED:
            if self._restorer.untouched(partition, self._consumer, self._transactions):
                self._begin_running(partition)
            else:
                self._start_over([partition], TurnAborted("somebody else worked on it meanwhile"))
        elif self._restorer.step(partition, self._consumer, self.flush_all, self._transactions):
            self._begin_running(partition)

    def _begin_running(self, partition: Partition) -> None:
        topics, number = self._settings.topics, partition.number
        self._consumer.seek(TopicPartition(topics.transactions, number), partition.done.transactions)
        self._consumer.seek(TopicPartition(topics.labels, number), partition.done.labels)
        partition.phase = Phase.RUNNING
        self._consumer.resume([tp for tp in self._inputs_of([number]) if tp.topic not in self._paused_topics])
        self._metrics.restoring.labels(str(number)).set(0)

    def _flush_if_due(self) -> None:
        due = self._clock.monotonic() - self._last_flush >= self._settings.state.flush_interval_ms / 1000
        owed = self._must_flush()
        if not (due or owed):
            return
        self._leave_degraded()
        try:
            self._flush(self._with_rows())
            self._waiting_for_store = self._waiting_for_store and not owed
            self._measure(self._running())
            self._keeper.measure_store(self._clock.monotonic())
        except UnavailableError as error:
            if owed:
                self._store_is_away(self._running(), error)
            else:
                self._metrics.redis_errors.labels("unavailable").inc()
                self._log.warning("flush failed; rows wait in memory", error=str(error))
        except StateLostError as error:
            self._start_over(self._with_rows(), error)

    def _must_flush(self) -> bool:
        """Whether one more turn could pass what a replay can tell apart, or what a commit can note."""
        kept = [p for p in self._running() if not p.degraded]
        return any(len(p.note("")) > METADATA_LIMIT for p in kept) or self._keeper.must_flush([p.number for p in kept])

    def flush_all(self) -> None:
        """Flushes every partition that has rows. UnavailableError, StateLostError.

        Degraded rows will be thrown away in any case: they go now, and make room.
        """
        for partition in self._partitions.values():
            if partition.degraded:
                self._keeper.drop(partition.number)
        self._flush(self._with_rows())

    def _flush(self, partitions: list[Partition]) -> None:
        self._last_flush = self._clock.monotonic()
        with self._metrics.stage("flush"), self._metrics.flush_seconds.time():
            self._keeper.flush(partitions)
        self._fault("flush:after")

    def _leave_degraded(self) -> None:
        degraded = [p for p in self._partitions.values() if p.degraded]
        if degraded and self._keeper.store_answers(degraded[0].number):
            self._start_over(degraded, TurnAborted("the store is back; scores without history are not kept"))

    def _measure(self, partitions: Iterable[Partition], *, ask: bool = False) -> None:
        """Gauges of the partitions of a turn or a flush: cheap enough for each. `ask` Kafka where the logs end."""
        end_of = self._consumer.end_offset if ask else self._consumer.known_end_offset
        for partition in partitions:
            label = str(partition.number)
            done = partition.done if partition.phase is Phase.RUNNING else self._restorer.target(partition.number)
            for tp, committed in zip(self._inputs_of([partition.number]), done or (), strict=False):
                # A fetch from before reading stopped knows less than a later question.
                end = self._ends[tp] = max(end_of(tp) or 0, self._ends.get(tp, 0))
                if end:
                    self._metrics.consumer_lag.labels(tp.topic, label).set(self._lag(tp, committed))
            flushed = partition.checkpoint or partition.base
            self._metrics.checkpoint_lag.labels(label).set(sum(partition.done) - sum(flushed))
        self._metrics.labels_waiting.set(sum(len(p.waiting_labels) for p in self._partitions.values()))
        self._keeper.measure()

    # --- small questions

    def _lag(self, tp: TopicPartition, committed: int) -> int:
        """Records of an input that are not done, as far as the last measurement saw it."""
        return max(0, self._ends.get(tp, 0) - committed)

    def _running(self) -> list[Partition]:
        return [p for p in self._partitions.values() if p.phase is Phase.RUNNING]

    def _in_turn(self) -> list[Partition]:
        """Running partitions, another one first each time: a full partition must not starve the others."""
        running = self._running()
        self._turns += 1
        start = self._turns % len(running) if running else 0
        return running[start:] + running[:start]

    def _with_rows(self) -> list[Partition]:
        """Partitions whose rows may be flushed: between turns every one stands at its `done`."""
        return [p for p in self._partitions.values() if p.phase in (Phase.RESTORING, Phase.RUNNING) and not p.degraded]

    def _caught_up(self) -> frozenset[int]:
        """Partitions of which every published transaction has been polled."""
        topic = self._settings.topics.transactions
        numbers = []
        for partition in self._running():
            if partition.waiting_labels and not partition.waiting_records:
                tp = TopicPartition(topic, partition.number)
                if self._consumer.position(tp) >= self._consumer.end_offset(tp):
                    numbers.append(partition.number)
        return frozenset(numbers)

    def _inputs_of(self, numbers: Iterable[int]) -> list[TopicPartition]:
        topics = self._settings.topics
        return [TopicPartition(topic, n) for n in numbers for topic in (topics.transactions, topics.labels)]
