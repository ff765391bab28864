"""A page store in the hands of one worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stream.state.store import Checkpoint, Head, StateStore


class Owner:
    """Claims each partition at its first use, and names the head that it knows in every call."""

    def __init__(self, store: StateStore, name: str = "group-w0", now_ms: int = 1_000) -> None:
        self.store, self.name, self.now_ms = store, name, now_ms
        self.heads: dict[int, Head] = {}
        self.row_key = store.row_key

    def claim(self, partition: int) -> Head:
        self.heads[partition] = self.store.claim(partition, self.name, self.now_ms)
        return self.heads[partition]

    def head(self, partition: int) -> Head:
        return self.heads.get(partition) or self.claim(partition)

    def load_rows(self, keys: Sequence[bytes], beside: Iterable[int] = ()) -> list[bytes | None]:
        """Rows, beside the heads of these partitions."""
        return self.store.load_rows(keys, {partition: self.head(partition) for partition in beside})

    def write_rows(self, rows: Mapping[bytes, bytes]) -> int:
        return self.store.write_rows(rows, {partition: self.head(partition) for partition in map(partition_of, rows)})

    def write_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        self.write_checkpoints({partition: checkpoint})

    def write_checkpoints(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        heads = {partition: self.head(partition) for partition in checkpoints}
        self.heads |= self.store.write_checkpoints(checkpoints, heads)

    def load_checkpoint(self, partition: int) -> Checkpoint | None:
        """W as anybody sees it."""
        head = self.store.load_head(partition)
        return head.checkpoint if head is not None else None

    def publish_copies(self, kind: str, partition: int, copies: Mapping[str, bytes]) -> None:
        named = {(kind, identity): row for identity, row in copies.items()}
        self.store.publish_copies({partition: named}, {partition: self.head(partition)})

    def read_copies(self, kind: str, identities: Sequence[str], *, own: int = -1) -> list[dict[int, bytes]]:
        """As seen from the partition `own`."""
        return self.store.read_copies([(kind, identity) for identity in identities], [own] * len(identities))

    def clear(self, partition: int) -> int:
        gone = self.store.clear(partition, self.head(partition))
        self.heads[partition] = self.heads[partition]._replace(checkpoint=None)
        return gone


def partition_of(key: bytes) -> int:
    """The partition in the hash tag of a row's name."""
    return int(key[: key.index(b"}")].rpartition(b":")[2])
