"""How each fault is done. Every function takes the arena and a strike, and leaves all servers running."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from stream.errors import RiskstreamError
from stream.kafka.port import CommittedOffset, TopicPartition
from tests.soak import archive
from tests.soak.arena import Arena, Slot
from tests.soak.schedule import Strike

_REACH_S = 20.0
_SESSION_S = 30.0
_UNANSWERED = 1
"""Exit code of a worker that got no answer at its start: allowed while a server is away."""


def strike(arena: Arena, planned: Strike) -> None:
    """Does it, counts it, and waits for the partitions to go on if the plan says so."""
    FAULTS[planned.fault](arena, planned)
    arena.seen.faults[planned.fault] += 1
    if planned.settle:
        arena.wait_progress()
    else:
        arena.supervise()


def _victim(arena: Arena, planned: Strike) -> Slot:
    arena.supervise()
    slot = arena.slots[planned.worker % len(arena.slots)]
    # One that has just been started is given the time to join.
    arena.wait_until(lambda: bool(slot.worker.logs("assigned")) or not slot.worker.alive, f"{slot.worker_id} joins")
    arena.supervise()
    return slot


@contextlib.contextmanager
def _outage(arena: Arena) -> Iterator[None]:
    """Notes when a server was away: a takeover meanwhile waits for it."""
    began = time.time() * 1000
    yield
    arena.wait_progress(_UNANSWERED)
    arena.seen.outages.append((began, time.time() * 1000))


# --- workers


def kill(arena: Arena, planned: Strike) -> None:
    slot = _victim(arena, planned)
    time.sleep(planned.wait_s)
    slot.worker.send(signal.SIGKILL)
    _replace(arena, planned, slot)


def kill_at(arena: Arena, planned: Strike) -> None:
    """At a named point. The point of a restore is ordered from a worker that has to restore: a new one."""
    slot = _victim(arena, planned)
    if planned.point.startswith("restore"):
        slot.worker.order("turn:after_commit")
        if not slot.worker.wait_reached(_REACH_S):
            slot.worker.send(signal.SIGKILL)
        _replace(arena, planned, slot)
        slot.worker.order(planned.point, delay_ms=planned.delay_ms)
    else:
        slot.worker.order(planned.point, hit=planned.hit, delay_ms=planned.delay_ms)
    if slot.worker.wait_reached(_REACH_S):
        arena.seen.points[planned.point] += 1
    else:
        slot.worker.cancel()
        slot.worker.send(signal.SIGKILL)
    _replace(arena, planned, slot)


def _replace(arena: Arena, planned: Strike, slot: Slot) -> None:
    arena.killed(slot, planned.fault)
    if planned.number % 5 == 0:
        arena.check_rows()
    time.sleep(planned.wait_s / 4)
    arena.respawn(slot, same_id=planned.same_id)


def zombie(arena: Arena, planned: Strike) -> None:
    """Stopped at a random moment until others have its partitions and have gone on; then it wakes up."""
    slot = _victim(arena, planned)
    slot.worker.send(signal.SIGSTOP)
    _wake_up_later(arena, planned, slot)


def zombie_at(arena: Arena, planned: Strike) -> None:
    """The same, stopped at a named point."""
    slot = _victim(arena, planned)
    slot.worker.order(planned.point, act="stop", hit=planned.hit)
    if not slot.worker.wait_reached(_REACH_S):
        slot.worker.cancel()
        slot.worker.send(signal.SIGSTOP)
    _wake_up_later(arena, planned, slot)


def _wake_up_later(arena: Arena, planned: Strike, slot: Slot) -> None:
    joins = len(slot.worker.logs("assigned"))
    arena.wait_until(lambda: _is_expelled(arena, slot.worker_id), f"{slot.worker_id} loses its place", _SESSION_S)
    arena.wait_progress()
    time.sleep(planned.wait_s)
    slot.worker.send(signal.SIGCONT)
    arena.wait_until(
        lambda: not slot.worker.alive or len(slot.worker.logs("assigned")) > joins, f"{slot.worker_id} finds out"
    )


def _is_expelled(arena: Arena, worker_id: str) -> bool:
    try:
        return worker_id not in arena.deployment.members()
    except Exception:  # the vendor's admin client has many ways to say "not now"
        return False


def storm(arena: Arena, planned: Strike) -> None:
    """Workers join and leave faster than a rebalance takes."""
    joining = [Slot(worker_id, arena.spawn(worker_id)) for worker_id in (arena.new_id(), arena.new_id())]
    time.sleep(planned.wait_s)
    leaving = arena.slots[planned.worker % len(arena.slots)]
    leaving.worker.send(signal.SIGTERM)
    joining.append(Slot(worker_id := arena.new_id(), arena.spawn(worker_id)))
    _left(arena, leaving)
    arena.respawn(leaving, same_id=planned.same_id)
    for slot in joining:
        time.sleep(planned.wait_s)
        arena.wait_until(lambda slot=slot: bool(slot.worker.logs("started")) or not slot.worker.alive, "it starts")
        slot.worker.send(signal.SIGTERM)
        _left(arena, slot)


def _left(arena: Arena, slot: Slot) -> None:
    code = slot.worker.wait_exit()
    # SIGTERM before the handler is there ends it as it would end any process.
    if code not in (0, 10, -signal.SIGTERM):
        arena.complain(f"{slot.worker_id} ended with {code} on SIGTERM: {slot.worker.output()[-1500:]}")


# --- the broker


def broker_kill(arena: Arena, planned: Strike) -> None:
    """kill -9 while a worker stands inside its transaction."""
    slot = _victim(arena, planned)
    slot.worker.order("turn:inside_commit", act="wait", delay_ms=1_000 + 1_000 * planned.wait_s)
    slot.worker.wait_reached(_REACH_S)
    slot.worker.cancel()
    with _outage(arena):
        arena.kafka.kill()
        time.sleep(planned.wait_s)
        arena.kafka.restart()


def broker_slow(arena: Arena, planned: Strike) -> None:
    """It stands still for a while; every answer comes late."""
    with _outage(arena):
        arena.kafka.send(signal.SIGSTOP)
        time.sleep(planned.wait_s)
        arena.kafka.send(signal.SIGCONT)


def disk_full(arena: Arena, planned: Strike) -> None:
    """Kafka ends when its only log folder fails. The disk is freed, and an operator starts it again."""
    with _outage(arena):
        how = arena.kafka.fill_disk()
        deadline = time.monotonic() + _REACH_S
        while arena.kafka.process is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if arena.kafka.process is not None:
            arena.complain(f"the broker does not mind a full disk ({how})")
        arena.kafka.free_disk()
        arena.kafka.kill()
        arena.kafka.restart()


# --- Redis


def redis_old_snapshot(arena: Arena, planned: Strike) -> None:
    """Killed, and back with what it held a while ago."""
    arena.redis.save("older")
    time.sleep(planned.wait_s)
    with _outage(arena):
        arena.redis.restart("older")


def redis_flushall(arena: Arena, planned: Strike) -> None:
    with _outage(arena):
        arena.redis.flush_all()


def redis_out(arena: Arena, planned: Strike) -> None:
    """Away for long, then back with its data."""
    arena.redis.save("out")
    with _outage(arena):
        arena.redis.kill()
        time.sleep(planned.wait_s)
        arena.redis.restart("out")


def redis_hangs(arena: Arena, planned: Strike) -> None:
    """It takes connections and does not answer."""
    with _outage(arena):
        arena.redis.send(signal.SIGSTOP)
        time.sleep(planned.wait_s)
        arena.redis.send(signal.SIGCONT)


def redis_full(arena: Arena, planned: Strike) -> None:
    with _outage(arena):
        arena.redis.fill()
        time.sleep(planned.wait_s)
        arena.redis.empty()


def redis_promoted(arena: Arena, planned: Strike) -> None:
    """The master dies; a replica that heard nothing of the last seconds takes its place."""
    arena.redis.add_replica()
    arena.redis.cut_replica()
    time.sleep(planned.wait_s)
    with _outage(arena):
        arena.redis.promote_replica()


# --- an operator's hand, and time


def offsets_back(arena: Arena, planned: Strike) -> None:
    """Refused with the two ways out; the operator then puts the offsets back, and nothing has happened."""
    with _outage(arena):
        arena.stop_workers()
        _wait_empty(arena)
        stood = arena.deployment.committed()
        topic = arena.deployment.topics.transactions
        checkpoints = {number: arena.state.checkpoint(number) for number in range(arena.deployment.partitions)}
        known = {number: int(text.split(b":")[0]) for number, text in checkpoints.items() if text not in (None, b"-")}
        chosen = max(known, key=lambda number: known[number])
        arena.deployment.move_offsets({TopicPartition(topic, chosen): CommittedOffset(known[chosen] // 2, "")})
        _refused(arena, 13, "redis.namespace", "riskstream state rebuild")
        if not arena.seen.complaints:
            # This one alone: with the others the worker has gone on until it refused.
            moved = TopicPartition(topic, chosen)
            arena.deployment.move_offsets({moved: stood[moved]})
        arena.start_workers()


def log_truncated(arena: Arena, planned: Strike) -> None:
    """Redis is back with old data, and retention has dropped what a replay needs: refused, until it has its data."""
    # After a loss of the store a checkpoint comes back with its rebuild only; a snapshot without one would not be
    # refused: its rebuild from the cut log would be flagged cold.
    arena.wait_until(
        lambda: all(arena.state.checkpoint(n) not in (None, b"-") for n in range(arena.deployment.partitions)),
        "every partition has a checkpoint",
    )
    arena.redis.save("older")
    arena.wait_progress()
    arena.wait_progress()
    with _outage(arena):
        arena.stop_workers()
        arena.redis.save("newest")
        _wait_empty(arena)
        stood = arena.deployment.committed()
        where = TopicPartition(arena.deployment.topics.transactions, planned.worker % arena.deployment.partitions)
        archive.keep(arena.folder, arena.kafka.bootstrap, *where)
        arena.deployment.delete_before({where: stood[where].offset})
        arena.redis.restart("older")
        _refused(arena, 14, "state.on_truncated_log", "riskstream state rebuild")
        arena.redis.restart("newest")
        arena.start_workers()


def _refused(arena: Arena, code: int, *words: str) -> None:
    """A worker that is started now must refuse with this code, and name these ways out."""
    worker = arena.spawn(arena.new_id())
    child = worker.child
    assert child is not None
    found = child.wait(_REACH_S + _SESSION_S)
    worker.kill()
    text = worker.output()
    if found != code or not all(word in text for word in words):
        arena.complain(f"not refused with {code} and {words}, but {found}: {text[-1500:]}")
    _wait_empty(arena)


def _wait_empty(arena: Arena) -> None:
    """Until nobody is in the group: one that was killed keeps its place until its session ends."""
    deadline = time.monotonic() + _SESSION_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RiskstreamError):
            if not arena.deployment.members():
                return
        time.sleep(0.1)
    arena.complain("the group does not become empty")


FAULTS: dict[str, Callable[[Arena, Strike], None]] = {
    fault.__name__: fault
    for fault in (
        kill,
        kill_at,
        zombie,
        zombie_at,
        storm,
        broker_kill,
        broker_slow,
        disk_full,
        redis_old_snapshot,
        redis_flushall,
        redis_out,
        redis_hangs,
        redis_full,
        redis_promoted,
        offsets_back,
        log_truncated,
    )
}
