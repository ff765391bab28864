"""The interpreter's memory in a process that makes and frees the same things in every batch."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MB = 1 << 20
_OPTIONS = {_M_MMAP_THRESHOLD: 32 * _MB, _M_TRIM_THRESHOLD: 512 * _MB, _M_TOP_PAD: 64 * _MB}


def settle() -> None:
    """To be called once everything that stays has been made, and before the first batch.

    The collector need not walk over what is there again and again, nor after every 700 objects: a batch makes some
    ten thousand and frees them all by counting references. And glibc keeps what numpy frees, up to half a gigabyte:
    by itself it gives a batch's arrays back to the kernel, which clears every page for the next one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc alone has it
        for option, size in _OPTIONS.items():
            libc.mallopt(option, size)
