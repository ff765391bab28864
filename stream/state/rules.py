"""What every page store checks, in plain Python. The Lua of `redis_scripts.py` is the twin of `replaces`."""

from __future__ import annotations

import struct

from stream.errors import StateLostError
from stream.state.store import ROW_HEADER_BYTES, Checkpoint


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


def require_checkpoint(partition: int, expected: Checkpoint | None, found: Checkpoint | None) -> None:
    """StateLostError when the store's checkpoint is not the one that the caller knows."""
    if found != expected:
        raise StateLostError(
            f"partition {partition}: the store's checkpoint is {found}, this worker knows {expected}: the store lost "
            "data or another worker restored this partition; the rows are dropped and restored from the log"
        )
