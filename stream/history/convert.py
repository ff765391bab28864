"""Columns of a file as checked values of our contract, a batch at a time.

Every conversion is vectorised and returns its values with a mask of the rows that it could not
convert; only when a batch has such rows are they looked for one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError

from stream.errors import ConfigError
from stream.events.moments import EARLIEST_MS, END_MS
from stream.features.batch import F64, I64
from stream.history.batch import NEVER_MS, UNKNOWN, Text, is_missing
from stream.history.mapping import LabelSource, NumberSource, TextSource, TimeSource

Mask = NDArray[np.bool_]

_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_NS_PER_MS = _NS["ms"]
_WITH_ZONE = r"[0-9](Z|z|[+-][0-9]{2}:?[0-9]{2})$"


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows of a batch that one field could not take, and why."""

    field: str
    column: str
    why: str
    rows: Mask


class FieldCheck:
    """The contract's own rules for single fields, asked once per distinct value."""

    def __init__(self, event: type[BaseModel]) -> None:
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        for name, info in event.model_fields.items():
            annotation: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            self._adapters[name] = TypeAdapter(annotation)
        self._answers: dict[str, dict[str, str | None]] = {name: {} for name in self._adapters}

    def why_not(self, field: str, value: object) -> str | None:
        """Why the contract refuses the value; None if it takes it."""
        try:
            self._adapters[field].validate_python(value)
        except ValidationError as error:
            return error.errors(include_url=False, include_input=False)[0]["msg"]
        return None

    def text(self, field: str, values: Iterable[str], *, distinct_are_few: bool) -> dict[str, str]:
        """The refused ones of distinct values, each with the reason."""
        known = self._answers[field] if distinct_are_few else {}
        refused: dict[str, str] = {}
        for value in values:
            if value not in known:
                known[value] = self.why_not(field, value)
            why = known[value]
            if why is not None:
                refused[value] = why
        return refused


def text_field(
    field: str,
    source: TextSource,
    column: pa.Array | None,
    first_row: int,
    size: int,
    *,
    required: bool,
    check: FieldCheck,
) -> tuple[Text, list[Problem]]:
    """Text (B,), None where missing, and what was refused. `column` is None for a constant or row number."""
    if source.row_number is not None:
        numbers = range(first_row, first_row + size)
        return np.array([f"{source.row_number}{number}" for number in numbers], dtype=object), []
    if column is None:
        why = check.why_not(field, source.constant)
        if why is not None:
            raise ConfigError(f"fields.{field}: the constant {source.constant!r} is refused: {why}")
        return np.full(size, source.constant, dtype=object), []
    encoded = _as_text(column).dictionary_encode()
    distinct: list[str] = encoded.dictionary.to_pylist()
    codes = _codes(encoded)
    reasons: dict[int, str] = {}
    translated: list[str | None] = list(distinct)
    if source.values is not None:
        translated = [source.values.get(value, source.otherwise) if value else None for value in distinct]
        for code, value in enumerate(translated):
            if value is None and distinct[code]:
                reasons[code] = "is a value that is not in the mapping's `values`; add it, or give `otherwise`"
    few = len(distinct) * 2 < size
    refused = check.text(field, {value for value in translated if value}, distinct_are_few=few)
    for code, value in enumerate(translated):
        if value in refused:
            reasons[code] = f"is refused: {refused[value]}"
    values = np.array([value or None for value in translated] + [None], dtype=object)[codes]
    problems = [
        Problem(
            field, str(source.column), why, np.isin(codes, [code for code, reason in reasons.items() if reason == why])
        )
        for why in dict.fromkeys(reasons.values())
    ]
    if required:
        unexplained = is_missing(values) & ~np.isin(codes, list(reasons))
        problems += _problem(field, source.column, "is empty, but required", unexplained)
    return values, problems


def number_field(
    field: str,
    source: NumberSource,
    column: pa.Array | None,
    size: int,
    *,
    required: bool,
    check: FieldCheck,
    decimal: str,
) -> tuple[F64, list[Problem]]:
    """float64 (B,), NaN where missing, and what was refused."""
    if column is None:
        return np.full(size, source.constant, np.float64), []
    present, unreadable = _as_numbers(column, decimal)
    values = present * (-1.0 if source.negate else 1.0) + 0.0
    if source.unit == "minor":
        values = values / 10.0**source.minor_digits
    missing = np.asarray(_is_blank(column))
    problems = _problem(field, source.column, "is not a number", unreadable)
    if required:
        problems += _problem(field, source.column, "is empty, but required", missing)
    infinite = ~np.isfinite(values) & ~missing & ~unreadable
    problems += _problem(field, source.column, "is not a finite number", infinite)
    good = ~(missing | unreadable | infinite)
    problems += _out_of_bounds(field, str(source.column), values, good, check)
    values[~good] = np.nan
    return values, problems


def time_field(field: str, source: TimeSource, column: pa.Array, *, required: bool) -> tuple[I64, Mask, list[Problem]]:
    """Milliseconds since 1970 (B,), the mask of rows that have one, and what was refused."""
    blank = np.asarray(_is_blank(column))
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        parsed, bad = _from_timestamps(column, source.zone), np.zeros(len(column), np.bool_)
    elif source.format is not None:
        parsed, bad = _from_format(column, source.format, source.zone)
    elif source.unit == "iso":
        parsed, bad = _from_iso(column, source.zone)
    elif source.unit is not None:
        parsed, bad = _from_numbers(column, _NS[source.unit])
        parsed = parsed + source.since_ms
    else:
        raise ConfigError(
            f"fields.{field}: column {source.column!r} holds {column.type}, not timestamps: "
            "give its unit (ns, us, ms, s, min, h, d, iso) or a format"
        )
    unreadable = bad & ~blank
    outside = ~blank & ~unreadable & ((parsed < EARLIEST_MS) | (parsed >= END_MS))
    problems = _problem(field, source.column, "is not a time in the mapping's unit or format", unreadable)
    problems += _problem(field, source.column, "is a time before 1990 or after 2100: is the unit right?", outside)
    if required:
        problems += _problem(field, source.column, "is empty, but required", blank)
    present = ~(blank | unreadable | outside)
    return np.where(present, parsed, 0), present, problems


def label_arrays(
    source: LabelSource, column: pa.Array, known: pa.Array | None, time_ms: I64, delay_ms: int
) -> tuple[NDArray[np.int8], I64, list[Problem]]:
    """`fraud` and `known_ms` (B,) as HistoryBatch has them, and what was refused."""
    encoded = _as_text(column).dictionary_encode()
    # The last entry is for nulls, which `_codes` points there: blank, like an empty text.
    verdicts = [_verdict(source, value) for value in [*encoded.dictionary.to_pylist(), ""]]
    codes = _codes(encoded)
    fraud = np.array([UNKNOWN if verdict is None else verdict for verdict in verdicts], np.int8)[codes]
    odd = [code for code, verdict in enumerate(verdicts) if verdict is None]
    why = "is neither among label.positive nor among label.negative; add it to one of them"
    problems = _problem("label", source.column, why, np.isin(codes, odd))
    known_ms = time_ms + delay_ms
    if known is not None and source.known is not None:
        told_ms, told, known_problems = time_field("label.known", source.known, known, required=False)
        known_ms = np.where(told, np.maximum(told_ms, time_ms), known_ms)
        problems += known_problems
    return fraud, np.where(fraud == UNKNOWN, NEVER_MS, known_ms), problems


def _verdict(source: LabelSource, value: str) -> int | None:
    """1, 0 or UNKNOWN; None for a value that the mapping does not explain."""
    if value in source.positive:
        return 1
    if source.negative is None:
        return 0 if value else UNKNOWN
    if value in source.negative:
        return 0
    return None if value else UNKNOWN


def attribute_values(column: pa.Array) -> Text:
    """Any column as JSON values (B,): numbers and booleans stay, everything else becomes text."""
    plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    chosen = column if plain else _as_text(column)
    values: Text = np.array([*chosen.to_pylist(), None], dtype=object)[:-1]
    values[np.equal(values, "")] = None
    return values


def _problem(field: str, column: str | None, why: str, rows: Mask) -> list[Problem]:
    return [Problem(field, str(column), why, rows)] if rows.any() else []


def _codes(encoded: pa.DictionaryArray) -> NDArray[np.int64]:
    """Dictionary codes (B,); a null becomes the code after the last, so that it finds an appended None."""
    codes = encoded.indices.fill_null(len(encoded.dictionary))
    return np.asarray(codes.to_numpy(zero_copy_only=False), np.int64)


def _as_text(column: pa.Array) -> pa.Array:
    """A string array without surrounding blanks. Whole floats lose their '.0', as identifiers need."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column), min_count=0).as_py():
        column = column.cast(pa.int64(), safe=False)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = column.cast(pa.string())
    return pc.utf8_trim_whitespace(column)


def _without_blanks(text: pa.Array) -> pa.Array:
    """Empty texts as nulls: one of them would fail the cast of the whole batch."""
    return pc.if_else(pc.equal(text, ""), None, text)


def _is_blank(column: pa.Array) -> Mask:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).fill_null(True)
    else:
        blank = column.is_null(nan_is_null=True)
    return np.asarray(blank.to_numpy(zero_copy_only=False), np.bool_)


def _cast(column: pa.Array, to: pa.DataType) -> tuple[pa.Array, Mask]:
    """A cast, with the mask of values that have none (null in the result)."""
    bad = np.zeros(len(column), np.bool_)
    try:
        return column.cast(to), bad
    except pa.ArrowInvalid:
        values = []
        for row in range(len(column)):
            try:
                values.append(column[row].cast(to))
            except pa.ArrowInvalid:
                bad[row] = True
                values.append(pa.scalar(None, to))
        return pa.array([value.as_py() for value in values], to), bad


def _as_numbers(column: pa.Array, decimal: str) -> tuple[F64, Mask]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        if decimal != ".":
            column = pc.replace_substring(column, decimal, ".")
        column = _without_blanks(column)
    numbers, bad = _cast(column, pa.float64())
    return np.array(numbers.fill_null(np.nan).to_numpy(zero_copy_only=False), np.float64), bad


def _out_of_bounds(field: str, column: str, values: F64, good: Mask, check: FieldCheck) -> list[Problem]:
    """Bounds make an interval: if the contract takes the least and the greatest, it takes all between."""
    if not good.any():
        return []
    low, high = float(values[good].min()), float(values[good].max())
    if check.why_not(field, low) is None and check.why_not(field, high) is None:
        return []
    rows = np.zeros(len(values), np.bool_)
    why = ""
    for row in np.flatnonzero(good):
        refused = check.why_not(field, float(values[row]))
        if refused is not None:
            rows[row] = True
            why = why or f"is refused: {refused}"
    good &= ~rows
    return [Problem(field, column, why, rows)]


def _from_numbers(column: pa.Array, unit_ns: int) -> tuple[I64, Mask]:
    if pa.types.is_integer(column.type):
        whole = np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        # Far outside any calendar: clipped, so that the multiplication cannot overflow; refused as outside.
        limit = 2 * END_MS * _NS_PER_MS // unit_ns
        return _in_ms(np.clip(whole, -limit, limit), unit_ns), np.zeros(len(column), np.bool_)
    numbers, bad = _as_numbers(column, ".")
    limit_ms = 2.0 * END_MS
    in_ms = np.nan_to_num(numbers * (unit_ns / _NS_PER_MS), posinf=limit_ms, neginf=-limit_ms)
    return np.floor(np.clip(in_ms, -limit_ms, limit_ms) + 1e-6).astype(np.int64), bad | np.isnan(numbers)


def _in_ms(units: I64, unit_ns: int) -> I64:
    return units * (unit_ns // _NS_PER_MS) if unit_ns >= _NS_PER_MS else units // (_NS_PER_MS // unit_ns)


def _from_timestamps(column: pa.Array, zone: str) -> I64:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if column.type.tz is None:
        column = _in_zone(column, zone)
    return _to_ms(column)


def _from_format(column: pa.Array, pattern: str, zone: str) -> tuple[I64, Mask]:
    parsed = pc.strptime(_as_text(column), format=pattern, unit="s", error_is_null=True)
    bad = np.asarray(parsed.is_null().to_numpy(zero_copy_only=False), np.bool_)
    return _to_ms(_in_zone(parsed, zone)), bad


def _from_iso(column: pa.Array, zone: str) -> tuple[I64, Mask]:
    text = _without_blanks(_as_text(column))
    with_zone = np.asarray(pc.match_substring_regex(text, _WITH_ZONE).fill_null(False).to_numpy(zero_copy_only=False))
    parsed = np.zeros(len(text), np.int64)
    bad = np.zeros(len(text), np.bool_)
    for rows, zoned in ((np.flatnonzero(with_zone), True), (np.flatnonzero(~with_zone), False)):
        if len(rows) == 0:
            continue
        stamps, wrong = _cast(text.take(pa.array(rows)), pa.timestamp("us", "UTC" if zoned else None))
        parsed[rows] = _to_ms(stamps if zoned else _in_zone(stamps, zone))
        bad[rows] = wrong | np.asarray(stamps.is_null().to_numpy(zero_copy_only=False), np.bool_)
    return parsed, bad


def _in_zone(stamps: pa.Array, zone: str) -> pa.Array:
    """Local times as instants. An hour that a clock change repeats or leaves out counts as the earlier."""
    try:
        return pc.assume_timezone(stamps, zone, ambiguous="earliest", nonexistent="earliest")
    except pa.ArrowInvalid as error:
        raise ConfigError(
            f"zone {zone!r} is not known here: write an IANA name such as Europe/Paris, "
            "and see that the system's time zone data are installed (package tzdata)"
        ) from error


def _to_ms(stamps: pa.Array) -> I64:
    units = np.asarray(stamps.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    return _in_ms(units, _NS[stamps.type.unit])
