"""Streams a history file (CSV or Parquet) as `HistoryBatch`es, in bounded memory."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from stream.errors import ConfigError
from stream.events.moments import moment_text
from stream.features.batch import I64
from stream.history import convert
from stream.history.batch import NEVER_MS, UNKNOWN, HistoryBatch, concatenate, iterate_slices
from stream.history.convert import Mask, Problem
from stream.history.mapping import BoundMapping

_CSV_BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Summary:
    """What a reader has read so far, and what it left out."""

    rows: int = 0
    events: int = 0
    frauds: int = 0
    unlabelled: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason ("column 'amt': is not a number") -> rows."""
    first_ms: int | None = None
    last_ms: int | None = None

    def add(self, batch: HistoryBatch) -> None:
        """Counts the events of a batch."""
        self.events += len(batch)
        self.frauds += int((batch.fraud == 1).sum())
        self.unlabelled += int((batch.fraud == UNKNOWN).sum())
        if len(batch):
            times = batch.time_ms
            self.first_ms = min(int(times.min()), self.first_ms if self.first_ms is not None else int(times.min()))
            self.last_ms = max(int(times.max()), self.last_ms or 0)

    def drop(self, reason: str, rows: int) -> None:
        """Counts rows left out for a reason."""
        self.dropped[reason] = self.dropped.get(reason, 0) + rows

    def lines(self) -> list[str]:
        """For a person to read."""
        span = ""
        if self.first_ms is not None and self.last_ms is not None:
            span = f", {moment_text(self.first_ms)} to {moment_text(self.last_ms)}"
        labels = f"{self.frauds:,} labelled fraud, {self.unlabelled:,} without a label"
        lines = [f"{self.rows:,} rows read, {self.events:,} events ({labels}){span}"]
        return lines + [f"  left out {count:,}: {reason}" for reason, count in self.dropped.items()]


class HistoryReader:
    """Iterating gives the file's events in order of time. Iterate once; `summary` grows on the way.

    The constructor checks that the file can be opened and has the mapping's columns.
    `label_delay_ms` replaces the mapping's delay. ConfigError names file, row, column and remedy;
    it never shows a value of the row, which may be a card number.
    """

    def __init__(
        self, path: Path, mapping: BoundMapping, *, batch_rows: int = 16_384, label_delay_ms: int | None = None
    ) -> None:
        self.summary = Summary()
        self._path = path
        self._bound = mapping
        self._mapping = mapping.mapping
        self._contract = mapping.contract
        self._batch_rows = batch_rows
        label = self._mapping.label
        self._delay_ms = label_delay_ms if label_delay_ms is not None or label is None else label.delay_ms
        self._check = convert.FieldCheck(mapping.contract.event)
        self._is_csv = self._format() == "csv"
        self._ragged_row_number: int | None = None
        self._columns = self._column_names()
        mapping.check_columns(self._columns, str(path))
        self._attributes = mapping.attribute_columns(self._columns)
        named = [column for _, column in mapping.named_columns()] + self._attributes
        self._used = list(dict.fromkeys(named))

    def total_rows(self) -> int:
        """Rows of the file. A CSV's lines are counted (seconds per GB): a value that spans lines counts twice."""
        if self._is_csv:
            header = 0 if self._mapping.csv.columns else 1
            with self._reading_errors():
                return max(0, _count_lines(self._path) - header)
        with self._reading_errors(), pa.parquet.ParquetFile(self._path) as file:
            return int(file.metadata.num_rows)

    def __iter__(self) -> Iterator[HistoryBatch]:
        if not self._mapping.sort:
            last_ms = 0
            for batch in self._converted():
                last_ms = self._require_order(batch, last_ms)
                yield from iterate_slices(batch, self._batch_rows)
            return
        batches = list(self._converted())
        if batches:
            whole = concatenate(batches)
            yield from iterate_slices(whole.take(np.argsort(whole.time_ms, kind="stable")), self._batch_rows)

    def _converted(self) -> Iterator[HistoryBatch]:
        for raw in self._record_batches():
            first_row = self.summary.rows + 1
            batch = self._convert(raw, first_row)
            self.summary.rows += raw.num_rows
            self.summary.add(batch)
            yield batch

    def _convert(self, raw: pa.RecordBatch, first_row: int) -> HistoryBatch:
        size = raw.num_rows
        required = self._contract.required
        problems: list[Problem] = []

        def column(name: str | None) -> pa.Array | None:
            return None if name is None else raw.column(name)

        time_source = self._bound.time
        assert time_source is not None, "check_columns has refused a mapping without a time"
        time_ms, _, found = convert.time_field(
            self._contract.time_field, time_source, raw.column(time_source.column), required=True
        )
        problems += found
        text, numbers = {}, {}
        for name, source in self._bound.text.items():
            text[name], found = convert.text_field(
                name, source, column(source.column), first_row, size, required=name in required, check=self._check
            )
            problems += found
        for name, number in self._bound.numbers.items():
            decimal = self._mapping.csv.decimal if self._is_csv else "."
            numbers[name], found = convert.number_field(
                name, number, column(number.column), size,
                required=name in required, check=self._check, decimal=decimal,
            )  # fmt: skip
            problems += found
        fraud, known_ms, found = self._labels(raw, time_ms)
        problems += found
        batch = HistoryBatch(
            contract=self._contract,
            time_ms=time_ms,
            text=text,
            numbers=numbers,
            fraud=fraud,
            known_ms=known_ms,
            attributes={name: convert.attribute_values(raw.column(name)) for name in self._attributes},
            label_source=self._mapping.label.source if self._mapping.label else "history",
        )
        return batch.take(self._good_rows(problems, size, first_row)) if problems else batch

    def _labels(self, raw: pa.RecordBatch, time_ms: I64) -> tuple[Any, I64, list[Problem]]:
        label = self._mapping.label
        if label is None or self._delay_ms is None:
            return np.full(raw.num_rows, UNKNOWN, np.int8), np.full(raw.num_rows, NEVER_MS, np.int64), []
        known = None if label.known is None else raw.column(label.known.column)
        return convert.label_arrays(label, raw.column(label.column), known, time_ms, self._delay_ms)

    def _good_rows(self, problems: list[Problem], size: int, first_row: int) -> Any:
        """The rows to keep; or, as the mapping says, stops at the first that is bad."""
        bad: Mask = np.zeros(size, np.bool_)
        if self._mapping.on_bad_row == "stop":
            first = min(problems, key=lambda problem: int(np.argmax(problem.rows)))
            row = first_row + int(np.argmax(first.rows))
            raise ConfigError(
                f"{self._path}: {self._row_name(row)}, column {first.column!r} (our {first.field}): "
                f"the value {first.why}. "
                f"Correct the row or the mapping, or set `on_bad_row: drop` in {self._bound.name}"
            )
        for problem in problems:
            rows = int((problem.rows & ~bad).sum())
            if rows:
                self.summary.drop(f"column {problem.column!r} (our {problem.field}): the value {problem.why}", rows)
            bad |= problem.rows
        return np.flatnonzero(~bad)

    def _row_name(self, row: int) -> str:
        if not self._is_csv:
            return f"row {row}"
        header = 0 if self._mapping.csv.columns else 1
        return f"row {row} (line {row + header}, if no value spans lines)"

    def _require_order(self, batch: HistoryBatch, last_ms: int) -> int:
        times = batch.time_ms
        if len(times) == 0:
            return last_ms
        back = np.flatnonzero(np.diff(times, prepend=last_ms) < 0)
        if len(back):
            before = max(last_ms, int(times[back[0] - 1]) if back[0] else last_ms)
            raise ConfigError(
                f"{self._path}: not in order of time: an event of {moment_text(int(times[back[0]]))} follows one of "
                f"{moment_text(before)}. Sort the file, or set `sort: true` in {self._bound.name} (it sorts in memory)"
            )
        return int(times[-1])

    def _format(self) -> str:
        if self._mapping.format is not None:
            return self._mapping.format
        name = self._path.name.lower().removesuffix(".gz")
        if name.endswith((".csv", ".tsv", ".txt")):
            return "csv"
        if name.endswith((".parquet", ".pq")):
            return "parquet"
        raise ConfigError(f"{self._path}: CSV or Parquet? Say `format: csv` or `format: parquet` in {self._bound.name}")

    def _column_names(self) -> list[str]:
        with self._reading_errors():
            if not self._is_csv:
                with pa.parquet.ParquetFile(self._path) as file:
                    return list(file.schema_arrow.names)
            if self._mapping.csv.columns:
                return list(self._mapping.csv.columns)
            with self._open_csv(include=None) as stream:
                return list(stream.schema.names)

    def _record_batches(self) -> Iterator[pa.RecordBatch]:
        with self._reading_errors():
            if self._is_csv:
                with self._open_csv(include=self._used) as stream:
                    yield from stream
            else:
                with pa.parquet.ParquetFile(self._path) as file:
                    yield from file.iter_batches(batch_size=self._batch_rows, columns=self._used)

    def _open_csv(self, include: list[str] | None) -> pa.csv.CSVStreamingReader:
        """Every column as text: a guessed type would lose leading zeros, and fail in a later block."""
        options = self._mapping.csv
        text = {} if include is None else {name: pa.string() for name in include}
        return pa.csv.open_csv(
            self._path,
            read_options=pa.csv.ReadOptions(
                use_threads=False,
                block_size=_CSV_BLOCK_BYTES,
                encoding=options.encoding,
                column_names=list(options.columns) if options.columns else None,
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=options.delimiter,
                newlines_in_values=True,
                invalid_row_handler=self._ragged_row if include is not None else lambda row: "skip",
            ),
            convert_options=pa.csv.ConvertOptions(column_types=text, include_columns=include),
        )

    def _ragged_row(self, row: pa.csv.InvalidRow) -> str:
        """Called by the CSV parser for a line with too few or too many columns."""
        if self._mapping.on_bad_row == "drop":
            self.summary.rows += 1
            self.summary.drop(f"{row.actual_columns} columns where {row.expected_columns} are expected", 1)
            return "skip"
        header = 0 if self._mapping.csv.columns else 1
        self._ragged_row_number = None if row.number is None else row.number - header
        return "error"

    @contextlib.contextmanager
    def _reading_errors(self) -> Iterator[None]:
        """What pyarrow and the system raise, in our words; pyarrow's own text may hold a row's values."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise ConfigError(f"{self._path}: there is no such file") from None
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror or type(error).__name__}") from None
        except (pa.ArrowInvalid, UnicodeDecodeError):
            if self._ragged_row_number is not None:
                raise ConfigError(
                    f"{self._path}: {self._row_name(self._ragged_row_number)} has another number of columns than the "
                    f"header. Is csv.delimiter right? Or set `on_bad_row: drop` in {self._bound.name}"
                ) from None
            kind = f"CSV in the encoding {self._mapping.csv.encoding}" if self._is_csv else "Parquet"
            raise ConfigError(f"{self._path}: cannot be read as {kind}, as {self._bound.name} says") from None


def _count_lines(path: Path) -> int:
    """Lines of a file, packed or not, in bounded memory; a last line without an end counts."""
    open_file = gzip.open if path.name.lower().endswith(".gz") else open
    lines, last = 0, b"\n"
    with open_file(path, "rb") as file:
        while block := file.read(_CSV_BLOCK_BYTES):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")
