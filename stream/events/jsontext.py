"""What a JSON parser does not say: keys given twice, and nesting too deep to parse safely."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The closing quote is optional and nothing is given back, so that unterminated text costs one pass.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SPACE_BEFORE_COLON = re.compile(rb"[ \t\n\r]:")
_WHITESPACE = b" \t\n\r"
_QUOTE_COLON = int.from_bytes(b'":', "little")


def nesting(value: bytes) -> int:
    """The greatest depth of objects and lists in a JSON text, 1 for a flat object. One linear pass."""
    codes = np.frombuffer(_STRING.sub(b"", value), dtype=np.uint8)
    opens = (codes == ord("{")) | (codes == ord("["))
    closes = (codes == ord("}")) | (codes == ord("]"))
    return int(np.cumsum(opens.astype(np.int32) - closes).max(initial=0))


def opened(value: bytes) -> int:
    """How many objects and lists a JSON text opens, or seems to: no less than `nesting`, and cheap."""
    return value.count(b"{") + value.count(b"[")


class _Pairs(list[tuple[str, Any]]):
    """An object that was read after a repeated key had been found elsewhere: not looked into any more."""


class _Repeated:
    """Stands in the place of an object that gives a key twice."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self.key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)


def repeated_key(text: str) -> tuple[str, bool] | None:
    """What an object gives twice, None if nothing or if `text` is no object.

    At the top level: (the key, False). Deeper: (the top-level field that holds it, True). Raises
    json.JSONDecodeError for what is not JSON. The nesting must have been checked.
    """
    found: list[_Repeated] = []

    def keep(pairs: list[tuple[str, Any]]) -> Any:
        if found:
            return _Pairs(pairs)
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        found.append(_Repeated(pairs))
        return found[0]

    # Numbers stay texts: int() is quadratic in digits and refuses more than 4,300 of them.
    top = json.loads(text, object_pairs_hook=keep, parse_int=str, parse_float=str, parse_constant=str)
    if isinstance(top, _Repeated):
        return top.key, False
    if isinstance(top, _Pairs):
        return next((key, True) for key, value in top if _holds(found[0], value))
    return None


def _holds(wanted: _Repeated, value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if item is wanted:
            return True
        if isinstance(item, _Pairs):
            waiting.extend(value for _, value in item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return False


def count_keys(event: dict[str, Any]) -> int:
    """All keys of a parsed object, nested ones included."""
    total = 0
    waiting: list[Any] = [event]
    while waiting:
        item = waiting.pop()
        if item.__class__ is dict:
            total += len(item)
            item = item.values()
        waiting += [value for value in item if value.__class__ is dict or value.__class__ is list]
    return total


def suspects(values: Sequence[bytes], events: Sequence[dict[str, Any]], max_nesting: int) -> list[int]:
    """Which of the messages may hold a key twice or be nested too deep: every one that does, and few others.

    `values` parsed without error into `events`. In JSON text a key ends with `":`, unless white space stands
    before the colon; the same two bytes inside a string only add to the count (as `\\":`). So without such white
    space count >= keys in the text >= keys in the parsed object, and equality proves that no key was lost. As
    that holds for each message, one count over the whole batch proves it for all.
    """
    joined = b"".join(values)
    codes = np.frombuffer(joined, dtype=np.uint8)
    objects = codes == ord("{")
    opens = int(np.count_nonzero(objects)) + int(np.count_nonzero(codes == ord("[")))
    shallow = opens - len(events) < max_nesting or _most_opened(codes, values) <= max_nesting
    pairs = _byte_pairs(joined)
    if shallow and not _space_before_colon(joined, pairs):
        flat = int(np.count_nonzero(objects)) == len(events)
        if _count(pairs, _QUOTE_COLON) == sum(map(len if flat else count_keys, events)):
            return []
    each = enumerate(zip(values, events, strict=True))
    return [index for index, (value, event) in each if _suspect(value, event, max_nesting)]


def _most_opened(codes: NDArray[np.uint8], values: Sequence[bytes]) -> int:
    """The most objects and lists that one message opens: no message is nested deeper."""
    starts = np.cumsum([0, *map(len, values[:-1])])
    opens = ((codes == ord("{")) | (codes == ord("["))).view(np.uint8)
    return int(np.add.reduceat(opens, starts, dtype=np.int32).max())


def _suspect(value: bytes, event: dict[str, Any], max_nesting: int) -> bool:
    """The same for one message. Without escaped backslashes, every `\\":` is known to lie inside a string."""
    if opened(value) > max_nesting or _SPACE_BEFORE_COLON.search(value):
        return True
    inside = value.count(b'\\":') if b"\\\\" not in value else 0
    keys = len(event) if value.count(b"{") == 1 else count_keys(event)
    return value.count(b'":') - inside != keys


def _byte_pairs(joined: bytes) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """All pairs of neighbouring bytes, as two views: those that start at even places, and at odd ones.

    Counting in these takes an eighth of the time of bytes.count, which is slow for two-byte patterns.
    """
    even, odd = len(joined) // 2, max(len(joined) - 1, 0) // 2
    return np.frombuffer(joined, "<u2", even), np.frombuffer(joined, "<u2", odd, 1) if odd else np.empty(0, "<u2")


def _count(pairs: tuple[NDArray[np.uint16], NDArray[np.uint16]], pattern: int) -> int:
    return int(sum(np.count_nonzero(half == pattern) for half in pairs))


def _space_before_colon(joined: bytes, pairs: tuple[NDArray[np.uint16], NDArray[np.uint16]]) -> bool:
    return any(space in joined and _count(pairs, space | ord(":") << 8) for space in _WHITESPACE)
