"""What every page store checks, in plain Python. `redis_scripts.py` has the Lua twins of `replaces` and `claimed`."""

from __future__ import annotations

import struct

from stream.errors import StateLostError
from stream.state.store import FORMER_OWNERS, ROW_HEADER_BYTES, Head


def replaces(new: bytes, old: bytes | None) -> bool:
    """Whether a row may take the place of another: neither offset lower, one greater."""
    if old is None:
        return True
    new_offsets = struct.unpack_from("<qq", new)
    old_offsets = struct.unpack_from("<qq", old)
    return new_offsets != old_offsets and all(n >= o for n, o in zip(new_offsets, old_offsets, strict=True))


def require_header(row: bytes) -> None:
    """ValueError for a row too short to hold its two offsets."""
    if len(row) < ROW_HEADER_BYTES:
        raise ValueError(f"a row begins with {ROW_HEADER_BYTES} bytes of offsets; this one has {len(row)} bytes")


def claimed(found: Head | None, owner: str, now_ms: int) -> Head:
    """The head after a claim."""
    if found is None:
        return Head(now_ms, (owner,), None)
    before = tuple(name for name in found.owners if name != owner)
    return Head(max(found.epoch + 1, now_ms), (owner, *before)[:FORMER_OWNERS], found.checkpoint)


def require_head(partition: int, known: Head, found: Head | None) -> None:
    """StateLostError when the store's head is not the one that the caller knows."""
    if found != known:
        raise lost(partition)


def lost(partition: int) -> StateLostError:
    """What to raise where a store refuses."""
    return StateLostError(
        f"partition {partition}: the store's head is not the one that this worker wrote: the store lost data, or "
        "another worker claimed this partition; the rows are dropped and restored from the log"
    )
