"""The book and the reading positions as one file, replaced at once: a restart goes on where it stood.

The SHA-256 of an .npz without pickle, and the .npz. A file that is damaged, of another version, or written with other
settings is not used: the topics are read again instead, so nothing depends on it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stream.kafka.port import TopicPartition
from stream.quality.book import ENTRY, Book, Cell, Table

FORMAT = 1
_DIGEST_BYTES = 32
_SUMS = ("events", "amount", "with_model", "predicted", "labels", "fraud", "fraud_amount", "bin_fraud")

Positions = dict[TopicPartition, int]


def save(path: Path, book: Book, positions: Mapping[TopicPartition, int]) -> None:
    """Writes the file beside its place, then renames it. Blocks until it is on the disk."""
    content = _dump(book, positions)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path, book: Book) -> Positions:
    """Fills an empty book from the file and returns the positions.

    ValueError: it is damaged, or of another version, or of other settings; the book is untouched.
    """
    whole = path.read_bytes()
    digest, content = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged, or no checkpoint")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        meta = json.loads(bytes(arrays["meta"]))
        if meta["format"] != FORMAT or meta["settings"] != _settings(book):
            raise ValueError("it was written by another version or with other settings")
        cells = _cells(arrays, meta)
        delays = arrays["cohorts"], arrays["delays"]
    positions = {TopicPartition(topic, number): offset for topic, number, offset in meta["positions"]}
    book.cells, book.clock_ms, book.halvings, book.models = cells, meta["clock_ms"], meta["halvings"], meta["models"]
    book.outcomes = Counter({(kind, outcome): count for kind, outcome, count in meta["outcomes"]})
    book.waiting_labels = {int(key): (time, known, fraud) for key, time, known, fraud in meta["waiting"]}
    book.delay.load(*delays)
    return positions


def _settings(book: Book) -> dict[str, int]:
    return {"maturity_ms": book.maturity_ms, "horizon_ms": book.horizon_ms, "most_entries": book.most_entries}


def _dump(book: Book, positions: Mapping[TopicPartition, int]) -> bytes:
    numbers = sorted(book.cells)
    cells = [book.cells[number] for number in numbers]
    for cell in cells:
        cell.merge()
    tables = [(place, model, table) for place, cell in enumerate(cells) for model, table in cell.tables.items()]
    drift = [(row, name, counts) for row, (_, _, table) in enumerate(tables) for name, counts in table.drift.items()]
    meta = {
        "format": FORMAT,
        "settings": _settings(book),
        "clock_ms": book.clock_ms,
        "halvings": book.halvings,
        "models": book.models,
        "outcomes": [[kind, outcome, count] for (kind, outcome), count in book.outcomes.items()],
        "waiting": [[str(key), *row] for key, row in book.waiting_labels.items()],
        "positions": [[tp.topic, tp.partition, offset] for tp, offset in positions.items()],
        "drift": [[row, name, len(counts)] for row, name, counts in drift],
    }
    cohorts, delays = book.delay.state()
    arrays: dict[str, Any] = {
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "cells": np.array([[n, c.halvings, len(c)] for n, c in zip(numbers, cells, strict=True)]).reshape(-1, 3),
        "identity": np.concatenate([np.zeros(0, np.uint64), *(cell.identity for cell in cells)]),
        "entries": np.concatenate([np.zeros(0, ENTRY), *(cell.entries for cell in cells)]),
        "tables": np.array([[place, model] for place, model, _ in tables], np.int64).reshape(-1, 2),
        "drift": np.concatenate([np.zeros(0, np.int64), *(counts for _, _, counts in drift)]),
        "cohorts": cohorts,
        "delays": delays,
    }
    for name in _SUMS:
        empty = getattr(Table(), name)
        sums = [getattr(table, name) for _, _, table in tables]
        arrays[f"sum.{name}"] = np.array(sums, empty.dtype).reshape(-1, *empty.shape)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _cells(arrays: Any, meta: Mapping[str, Any]) -> dict[int, Cell]:
    identity, entries = arrays["identity"], arrays["entries"]
    sums = {name: arrays[f"sum.{name}"] for name in _SUMS}
    cells: list[Cell] = []
    numbers: list[int] = []
    start = 0
    for number, halvings, count in arrays["cells"].tolist():
        chosen = slice(start, start + count)
        cells.append(Cell(halvings=halvings, identity=identity[chosen].copy(), entries=entries[chosen].copy()))
        numbers.append(number)
        start += count
    tables = []
    for row, (place, model) in enumerate(arrays["tables"].tolist()):
        table = cells[place].tables[model] = Table()
        for name in _SUMS:
            setattr(table, name, sums[name][row].copy())
        tables.append(table)
    drift, start = arrays["drift"], 0
    for row, name, length in meta["drift"]:
        tables[row].drift[name] = drift[start : start + length].copy()
        start += length
    return dict(zip(numbers, cells, strict=True))
