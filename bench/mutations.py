"""Hostile messages: valid events and labels by hypothesis, spoilt with knowledge of their structure, and raw bytes.

Seeded: the same seed gives the same messages. Each carries the name of its mutation, so that a finding can be told.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from stream.domains.iso import COUNTRIES, CURRENCIES

NOW_MS = 1_790_000_000_000
"""When the messages arrive; the valid events lie before it."""
TOPIC_LIMIT = 1_048_000
"""About what a topic takes by default."""
LARGE = 65_000
"""A little below `batch.max_message_bytes`: the largest that is parsed at all."""
_ARRIVALS = (NOW_MS,) * 40 + (-1, 0, 1, 2**53, 2**62, 2**63 - 1)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hostile:
    """One message. `arrived_ms` is its Kafka timestamp, -1 for none."""

    kind: str
    is_label: bool
    value: bytes | None
    arrived_ms: int


# --- valid documents

_PRINTABLE = st.characters(exclude_categories=["Cs", "Cc"])
_ID = st.integers(0, 60).map("a{}".format) | st.text(_PRINTABLE, min_size=1, max_size=20)
_SCALAR = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text()
_JSON = st.recursive(_SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
_MOMENT = st.datetimes(datetime(1990, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC)).map(datetime.isoformat)
_IDENTITY = {
    "event_id": _ID,
    "account_id": _ID,
    "timestamp": _MOMENT,
    "amount": st.floats(0, 1e12) | st.integers(0, 10**12),
    "currency": st.sampled_from(sorted(CURRENCIES)),
    "merchant_id": _ID,
}
_ENTITIES = {
    "terminal_id": st.none() | _ID,
    "device_id": st.none() | _ID,
    "ip": st.none() | st.ip_addresses().map(str),
}
_EVENTS = st.fixed_dictionaries(
    _IDENTITY
    | {
        "mcc": st.integers(0, 9999).map("{:04d}".format),
        "country": st.sampled_from(sorted(COUNTRIES)),
        "channel": st.sampled_from(["pos", "ecommerce", "atm", "x_-9"]),
    },
    optional=_ENTITIES
    | {
        "latitude": st.none() | st.floats(-90, 90),
        "longitude": st.none() | st.floats(-180, 180),
        "entry_mode": st.none() | _ID,
        "card_id": st.none() | _ID,
        "attributes": st.none() | st.dictionaries(st.text(), _SCALAR),
        "note": _JSON,
    },
)
_LABELS = st.fixed_dictionaries(
    _IDENTITY | {"fraud": st.booleans(), "labelled_at": _MOMENT, "source": st.sampled_from(["chargeback", "analyst"])},
    optional=_ENTITIES | {"note": _JSON},
)


def documents(kind: st.SearchStrategy[Document], number: int, count: int) -> list[Document]:
    """`count` valid documents of this kind, by seed."""
    found: list[Document] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind)
    def collect(document: Document) -> None:
        found.append(document)

    collect()
    return found


# --- mutations of a document, as text

TEXTS = (
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"a\\u0000b"', b'"\xef\xbb\xbf"',
    b'"\\u202e"',
    b'"\\/"', b'"\\u0022"', b'"\xd0\xb0mount"', b'"\xef\xbc\x95\xef\xbc\x94"', b'"\xe2\x80\x8b"', b'"\\uFFFF"', b'""',
    b'"\xf0\x9f\x92\xb3"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xff"', b'"\n"', b'"\\x41"', b"'a'", b'"\\ud83d"',
    '"ＥＵＲ"'.encode(), '"ЕUR"'.encode(), '"ﬁ"'.encode(), '"İ"'.encode(), '"e\u0301"'.encode(),
    b'"../../etc/passwd"', b'"file:///etc/passwd"', b'"redis://127.0.0.1:1/"', b'"${jndi:ldap://127.0.0.1/a}"',
    b'"__import__(\'os\').system(\'id\')"', b'"%s%n{0.__class__}"', b'"\\n\\r\\u001b[31m"', b'"a\'; DROP TABLE x;--"',
)  # fmt: skip
NUMBERS = (
    b"1e400", b"-1e400", b"1e-400", b"1E+308", b"-0", b"-0.0", b"00", b"01", b"1.", b".5", b"+1", b"0x1F", b"1e",
    b"--1",
    b"NaN", b"Infinity", b"-Infinity", b"nan", b"1_000", b"9" * 400, b"9" * 5_000, b"1" + b"0" * 60_000,
    b"0." + b"0" * 60_000 + b"1", b"1e" + b"9" * 4_000, b"9223372036854775808", b"-9223372036854775809",
    b"18446744073709551616", b"1e12", b"1000000000000.0001", b"4.9e-324", b"5e-324", b"1.7976931348623157e308",
    "\u0661".encode(), b"true", b"null", b"1e0000000000000000000001",
)  # fmt: skip
MOMENTS = (
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "1989-12-31T23:59:59.999999999Z", "1990-01-01T00:00:00Z",
    "2100-12-31T23:59:59.999999999Z", "2101-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59", "2025-02-29T00:00:00Z", "2024-02-29T24:00:00Z", "2024-06-30T23:59:60Z",
    "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00-99:99", "2024-01-01T00:00:00.0000000000Z", "2024-01-01 00:00:00Z",
    "2024-01-01T00:00:00z", "2024-W01-1T00:00:00Z", "+2024-01-01T00:00:00Z", "-001-01-01T00:00:00Z", "NaT", "now",
    "٢٠٢٤-01-01T00:00:00Z", "2024-01-01T00:00:00Z\n", "2024-01-01T00:00:00\u0000Z", "2024-13-01T00:00:00Z",
    "292278994-08-17T07:12:55.807Z", "2262-04-11T23:47:16.854775808Z", "1677-09-21T00:12:43.145224192Z",
)  # fmt: skip
ITEMS = (b"[]", b"{}", b'""', b"0", b'{"a":1,"a":2}', b'{"a":1}', b"1e400", b"NaN", b'"\\u0041"', b"[[[]]]")
"""What a wide list is made of."""
UNITS = (
    b"x", b'\\"', b"\\\\", b"{[", b'\\":', b" :", b"\\u0000", "ü".encode(), "💳".encode(), b"\\ud83d\\ude00",
)  # fmt: skip
"""What a giant text is made of."""
_LOOK_ALIKES = str.maketrans("aceoipxy", "асеоірху")


def _text(document: Document, rng: random.Random) -> bytes:
    spaces = rng.choice([(",", ":")] * 6 + [(", ", ": "), (" ,\n", " :\t")])
    return json.dumps(document, separators=spaces, ensure_ascii=rng.random() < 0.5).encode()


def _with(document: Document, name: str, raw: bytes, rng: random.Random) -> bytes:
    """The document with a field set to a text that json.dumps would not write."""
    return _text({**document, name: "@@raw@@"}, rng).replace(b'"@@raw@@"', raw)


def _field(document: Document, rng: random.Random) -> str:
    return rng.choice([*document, "attributes", "note", "latitude", "ip"])


def _unchanged(document: Document, rng: random.Random) -> bytes:
    return _text(document, rng)


def _bad_text(document: Document, rng: random.Random) -> bytes:
    return _with(document, _field(document, rng), rng.choice(TEXTS), rng)


def _bad_number(document: Document, rng: random.Random) -> bytes:
    return _with(document, rng.choice(["amount", _field(document, rng)]), rng.choice(NUMBERS), rng)


def _bad_moment(document: Document, rng: random.Random) -> bytes:
    name = rng.choice([name for name in ("timestamp", "labelled_at") if name in document])
    return _text({**document, name: rng.choice(MOMENTS)}, rng)


def _other_type(document: Document, rng: random.Random) -> bytes:
    values: list[Any] = [None, True, 0, -1, 1.5, "", [], {}, [[]], {"a": {"b": []}}, "x" * 129, 2**70]
    return _text({**document, _field(document, rng): rng.choice(values)}, rng)


def _dropped(document: Document, rng: random.Random) -> bytes:
    gone = set(rng.sample(sorted(document), rng.randrange(1, len(document))))
    return _text({name: value for name, value in document.items() if name not in gone}, rng)


def _twice(document: Document, rng: random.Random) -> bytes:
    name = rng.choice(list(document))
    spelt = rng.choice([f'"{name}"', '"' + "".join(f"\\u{ord(letter):04x}" for letter in name) + '"', f'"{name}" '])
    return _text(document, rng)[:-1] + f",{spelt}:1}}".encode()


def _look_alike(document: Document, rng: random.Random) -> bytes:
    name = rng.choice(list(document))
    twin = rng.choice([name.translate(_LOOK_ALIKES), name.upper(), name + "\u200b", " " + name, name + "\x00"])
    return _text({twin if key == name else key: value for key, value in document.items()}, rng)


def _nested(document: Document, rng: random.Random) -> bytes:
    depth = rng.choice([15, 16, 17, 100, 1_000, 10_000, 30_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]"), (b'["",', b"]")])
    depth = min(depth, LARGE // len(opening + closing))
    return _with(document, "note", opening * depth + b"1" + closing * rng.choice([depth, depth, 0]), rng)


def _wide(document: Document, rng: random.Random) -> bytes:
    """Many members, many fields, many empty things: the costly shapes."""
    item = rng.choice(
        [b"[]", b"{}", b'""', b"0", b'{"a":1,"a":2}', b'{"a":1}', b"1e400", b"NaN", b'"\\u0041"', b"[[[]]]"]
    )
    many = rng.choice([10, 300, LARGE // (len(item) + 1)])
    return _with(document, "note", b"[" + b",".join([item] * many) + b"]", rng)


def _many_fields(document: Document, rng: random.Random) -> bytes:
    count = rng.choice([20, 1_000, 4_500])
    value: object = rng.choice([0, None, "x", 1.5, [], {}, "\u0000"])
    return _text({**document, **{f"{rng.randrange(10**7):x}": value for _ in range(count)}}, rng)


def _attributes_bomb(document: Document, rng: random.Random) -> bytes:
    count = rng.choice([20, 1_000, 5_000])
    value = rng.choice([0, "x", None, [1], {"a": 1}, 1e308])
    return _text({**document, "attributes": {f"k{number}": value for number in range(count)}}, rng)


def _giant_text(document: Document, rng: random.Random) -> bytes:
    unit = rng.choice(
        [b"x", b'\\"', b"\\\\", b"{[", b'\\":', b" :", b"\\u0000", "ü".encode(), "💳".encode(), b"\\ud83d\\ude00"]
    )
    size = rng.choice([2_000, 20_000, LARGE - 3_000]) // len(unit)
    return _with(document, _field(document, rng), b'"' + unit * size + rng.choice([b'"', b'"', b""]), rng)


def _over_the_limit(document: Document, rng: random.Random) -> bytes:
    size = rng.choice([70_000, 300_000, TOPIC_LIMIT])
    return _with(document, "note", b'"' + rng.choice([b"x", b"[", b"\xff", b'"']) * size + b'"', rng)


# --- mutations of bytes

TOKENS = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b" :", b",", b"\n:", b"null", b"true", b"0", b"-", b"\x00", b"\xff",
    b"\xed\xa0\x80", b"\\ud83d", b"\\u0000", b'":', b'\\":', b',"amount":1', b"\xe2\x80\xa8", b"[" * 40, b" " * 50,
    b"\xef\xbb\xbf", b"/*", b"//", b"#", b"\\u", b"1e999", b"\xf4\x90\x80\x80", b"\xc1\xbf",
)  # fmt: skip


def _flipped(value: bytes, rng: random.Random) -> bytes:
    changed = bytearray(value)
    for _ in range(rng.choice([1, 1, 3, 20])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _inserted(value: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 4])):
        place = rng.randrange(len(value) + 1)
        value = value[:place] + rng.choice(TOKENS) + value[place:]
    return value


def _cut(value: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(value))
    return value[:place] + value[place + rng.choice([1, 3, 30, len(value)]) :]


def _repeated(value: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(value))
    piece = value[start : start + rng.randrange(1, 40)]
    return value[:start] + piece * rng.choice([2, 5, 1_000]) + value[start:]


def _joined(value: bytes, rng: random.Random) -> bytes:
    return rng.choice([value + value, b"[" + value + b"," + value + b"]", value + b"\n" + value, b"[" + value + b"]"])


def _recoded(value: bytes, rng: random.Random) -> bytes:
    text = value.decode(errors="replace")
    return text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037"]), errors="replace")


def _noise(value: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 8, 200, 5_000]))


def _soup(value: bytes, rng: random.Random) -> bytes:
    return b"".join(rng.choices(TOKENS + NUMBERS[:20] + TEXTS, k=rng.choice([1, 10, 200])))


def _one_token(value: bytes, rng: random.Random) -> bytes:
    return rng.choice(TOKENS) * rng.choice([1, 1_000, LARGE // 50])


Structured = Callable[[Document, random.Random], bytes]
Raw = Callable[[bytes, random.Random], bytes]
STRUCTURED: tuple[Structured, ...] = (
    _unchanged, _unchanged, _unchanged, _unchanged, _unchanged, _unchanged, _bad_text, _bad_text, _bad_text,
    _bad_number, _bad_number, _bad_moment, _bad_moment, _other_type, _other_type, _dropped, _twice, _look_alike,
)  # fmt: skip
COSTLY: tuple[Structured, ...] = (_nested, _wide, _many_fields, _attributes_bomb, _giant_text, _over_the_limit)
RAW: tuple[Raw, ...] = (
    _flipped, _flipped, _inserted, _inserted, _cut, _repeated, _joined, _recoded, _noise, _soup, _one_token,
)  # fmt: skip
_COSTLY_SHARE, _RAW_SHARE, _NULL_SHARE = 0.02, 0.3, 0.001
KINDS = frozenset(each.__name__.strip("_") for each in (*STRUCTURED, *COSTLY, *RAW)) | {"null"}


def hostile(number: int, corpus: int = 400) -> Iterator[Hostile]:
    """Messages without end, by seed, grown from so many valid documents of each kind."""
    rng = random.Random(number)
    seeds = (documents(_EVENTS, number, corpus), documents(_LABELS, number, corpus))
    while True:
        is_label = rng.random() < 0.2
        document = dict(rng.choice(seeds[is_label]))
        if rng.random() < 0.5:
            document["event_id"] = f"e{rng.randrange(10**6)}"
        arrived_ms = rng.choice(_ARRIVALS)
        if rng.random() < _NULL_SHARE:
            yield Hostile("null", is_label, None, arrived_ms)
            continue
        change = rng.choice(COSTLY if rng.random() < _COSTLY_SHARE else STRUCTURED)
        value, kind = change(document, rng), change.__name__
        if rng.random() < _RAW_SHARE and value:
            spoil = rng.choice(RAW)
            value, kind = spoil(value, rng), spoil.__name__
        yield Hostile(kind.strip("_"), is_label, value, arrived_ms)
