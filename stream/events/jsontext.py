"""What a JSON parser does not say: keys given twice, and nesting too deep to parse safely."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The closing quote is optional and nothing is given back, so that unterminated text costs one pass.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_S = r"[ \t\n\r]*+"
_START = re.compile(rf"{_S}\{{{_S}(\}})?")
_MEMBER = re.compile(rf'{_S}("[^"\\]*+(?:\\.[^"\\]*+)*+"){_S}:{_S}', re.DOTALL)
_AFTER_MEMBER = re.compile(rf"{_S}([,}}])")
_END = re.compile(rf"{_S}\Z")
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"([ \t\n\r]*+:)?', re.DOTALL)
_WHITESPACE = b" \t\n\r"
_QUOTE_COLON = int.from_bytes(b'":', "little")


def nesting(value: bytes) -> int:
    """The greatest depth of objects and lists in a JSON text, 1 for a flat object. One linear pass."""
    codes = np.frombuffer(_STRING.sub(b"", value), dtype=np.uint8)
    opens = (codes == ord("{")) | (codes == ord("["))
    closes = (codes == ord("}")) | (codes == ord("]"))
    return int(np.cumsum(opens.astype(np.int32) - closes).max(initial=0))


def has_more_values(value: bytes, limit: int) -> bool:
    """Whether a JSON text holds more than `limit` values: commas, objects and lists outside of its strings."""
    return _values(value) > limit and _values(_STRING.sub(b"", value)) > limit


def _values(value: bytes) -> int:
    return value.count(b",") + opened(value)


def opened(value: bytes) -> int:
    """How many objects and lists a JSON text opens, or seems to: no less than `nesting`, and cheap."""
    return value.count(b"{") + value.count(b"[")


class _KeyTwice(Exception):
    """An object that gives a key twice has been met; raised to stop reading there."""


def _unique(pairs: list[tuple[str, Any]]) -> None:
    """Stands in the place of every object: its content is of no interest."""
    if len(dict(pairs)) < len(pairs):
        raise _KeyTwice


# Numbers stay texts: int() is quadratic in digits and refuses more than 4,300 of them.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=str, parse_float=str, parse_constant=str)


def repeated_key(text: str) -> tuple[str, bool] | None:
    """The first key that an object gives twice, None if there is none or if `text` is no object.

    At the top level: (the key, False). Deeper: (the top-level field that holds it, True). Raises
    json.JSONDecodeError for what is not JSON, as far as it reads. The nesting must have been checked.
    """
    start = _START.match(text)
    if start is None:
        with contextlib.suppress(_KeyTwice):
            _DECODER.decode(text)
        return None
    place, seen, more = start.end(), set[str](), start[1] is None
    while more:
        member = _expect(_MEMBER, text, place, "a key in quotes and a colon")
        key = _DECODER.decode(member[1]) if "\\" in member[1] else member[1][1:-1]
        try:
            _, place = _DECODER.raw_decode(text, member.end())
        except _KeyTwice:
            return key, True
        if key in seen:
            return key, False
        seen.add(key)
        after = _expect(_AFTER_MEMBER, text, place, "a comma or the object's end")
        place, more = after.end(), after[1] == ","
    _expect(_END, text, place, "the end")
    return None


def _expect(pattern: re.Pattern[str], text: str, place: int, wanted: str) -> re.Match[str]:
    found = pattern.match(text, place)
    if found is None:
        raise json.JSONDecodeError(f"expecting {wanted}", text, place)
    return found


def shape(event: dict[str, Any]) -> tuple[int, int]:
    """(all keys of a parsed object, nested ones included; its depth, 1 for a flat one, empty ones not counted)."""
    keys = depth = 0
    level: list[Any] = [event]
    while level:
        depth += 1
        keys += sum([len(item) for item in level if item.__class__ is dict])
        level = [
            value
            for item in level
            for value in (item.values() if item.__class__ is dict else item)
            if value and (value.__class__ is dict or value.__class__ is list)
        ]
    return keys, depth


def suspects(values: Sequence[bytes], events: Sequence[dict[str, Any]], max_nesting: int) -> list[int]:
    """Which of the messages hold a key twice or may be nested too deep: every one that does, and few others.

    `values` parsed without error into `events`. In JSON text a key ends with `":`, unless white space stands
    before the colon; the same two bytes inside a string only add to the count (as `\\":`). So without such white
    space count >= keys in the text >= keys in the parsed object, and equality proves that no key was lost, and
    with no key no depth. As that holds for each message, one count over the whole batch proves it for all.
    """
    joined = b"".join(values)
    codes = np.frombuffer(joined, dtype=np.uint8)
    objects = int(np.count_nonzero(codes == ord("{")))
    flat = objects + int(np.count_nonzero(codes == ord("["))) == len(events)
    shapes = [(len(event), 1) for event in events] if flat else list(map(shape, events))
    pairs = _byte_pairs(joined)
    if not _space_before_colon(joined, pairs) and _count(pairs, _QUOTE_COLON) == sum([keys for keys, _ in shapes]):
        return [index for index, (_, depth) in enumerate(shapes) if depth >= max_nesting]
    return [
        index
        for index, (value, (keys, depth)) in enumerate(zip(values, shapes, strict=True))
        if depth >= max_nesting or _keys(value) != keys
    ]


def _keys(value: bytes) -> int:
    """All keys in a JSON text: the strings that a colon follows. One linear pass."""
    texts = _TEXT.findall(value)
    return len(texts) - texts.count(b"")


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
