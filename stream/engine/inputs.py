"""What was polled and is not yet done, and which of it the next turn takes.

Labels wait for the transactions that were published before them: a label is due once the first waiting
transaction is not older than it (Kafka timestamps), or when no transaction waits at all. So a worker that
is behind does not learn of a fraud before it has scored it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stream.engine.partition import Partition
from stream.kafka.port import Record
from stream.scoring.lineup import Lineup
from stream.state.store import Checkpoint


@dataclass(slots=True)
class Share:
    """What a turn does of one partition: labels first, then transactions."""

    partition: Partition
    labels: list[Record] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def end(self) -> Checkpoint:
        """Where the partition stands once this is done."""
        done = self.partition.done
        return Checkpoint(
            self.records[-1].offset + 1 if self.records else done.transactions,
            self.labels[-1].offset + 1 if self.labels else done.labels,
        )


def take(partitions: Iterable[Partition], caught_up: frozenset[int], max_events: int) -> list[Share]:
    """The next turn: at most `max_events` transactions and as many labels. Removes them from the queues.

    Transactions behind a label that is due and does not fit wait with it. Every partition gets an equal part
    before one gets more: a long queue of one, as after a takeover, makes nobody else wait.

    `caught_up`: numbers of the partitions of which everything published so far has been polled.
    """
    shares = []
    labels_left = records_left = max_events
    for partition in partitions:
        share = Share(partition)
        while labels_left and _is_label_due(partition, caught_up):
            share.labels.append(partition.waiting_labels.popleft())
            labels_left -= 1
        shares.append(share)
    open_shares = [s for s in shares if s.partition.waiting_records and not _is_label_due(s.partition, caught_up)]
    for most in (max(1, max_events // max(1, len(open_shares))), max_events):
        for share in open_shares:
            waiting = share.partition.waiting_records
            taken = min(len(waiting), records_left, most - len(share.records))
            share.records += [waiting.popleft() for _ in range(taken)]
            records_left -= taken
    return [share for share in shares if share.labels or share.records]


def _is_label_due(partition: Partition, caught_up: frozenset[int]) -> bool:
    if not partition.waiting_labels:
        return False
    if partition.waiting_records:
        return partition.waiting_labels[0].timestamp <= partition.waiting_records[0].timestamp
    return partition.number in caught_up


def keep_one_champion(shares: list[Share], lineup: Lineup) -> None:
    """Leaves for the next turn what another champion scores, so that a turn has one.

    The first share decides; its place changes with every turn, so nobody waits for ever.
    """
    moments = [record.timestamp for share in shares for record in share.records]
    if not moments:
        return
    lineup.begin_turn(moments[0])
    if not lineup.changes_between(min(moments), max(moments)):
        return
    champion = lineup.current()
    for share in shares:
        records = share.records
        others = (i for i, record in enumerate(records) if lineup.champion_at(record.timestamp) is not champion)
        place = next(others, len(records))
        # Labels come before the transactions of their turn: where none of those is done now, they wait too.
        keep_first(share, labels=0 if records and not place else len(share.labels), records=place)
    shares[:] = [share for share in shares if share.labels or share.records]


def put_back(shares: Sequence[Share]) -> None:
    """Undoes `take`: the turn could not begin."""
    for share in shares:
        share.partition.waiting_labels.extendleft(reversed(share.labels))
        share.partition.waiting_records.extendleft(reversed(share.records))


def keep_first(share: Share, *, labels: int, records: int) -> None:
    """Shortens a share; what is left over waits for the next turn."""
    share.partition.waiting_labels.extendleft(reversed(share.labels[labels:]))
    share.partition.waiting_records.extendleft(reversed(share.records[records:]))
    del share.labels[labels:]
    del share.records[records:]


def within_limit(accounts: Sequence[str], limit: int) -> int:
    """How many of the first items can be taken before an account would come more than `limit` times."""
    seen: dict[str, int] = {}
    for place, account in enumerate(accounts):
        count = seen.get(account, 0) + 1
        if count > limit:
            return place
        seen[account] = count
    return len(accounts)
