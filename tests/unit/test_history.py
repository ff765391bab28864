"""The history reader: against a slow obvious twin, and every way in which a file or a mapping can be wrong."""

from __future__ import annotations

import csv
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from pydantic import TypeAdapter

from stream.domains.payments_schema import Label, Transaction
from stream.errors import ConfigError
from stream.history.batch import NEVER_MS, UNKNOWN, HistoryBatch, LabelQueue, WireContract, concatenate
from stream.history.mapping import BoundMapping, load_mapping
from stream.history.reader import HistoryReader
from stream.simulate.simulation import Simulation

ROOT = Path(__file__).parents[2]
CONTRACT = WireContract.of(Transaction, Label)
DAY_MS = 86_400_000

FIELDS: dict[str, Any] = {
    "event_id": "id",
    "account_id": "card",
    "timestamp": {"column": "when", "unit": "s"},
    "amount": "amt",
    "currency": {"constant": "USD"},
    "merchant_id": "shop",
    "mcc": {"constant": "5411"},
    "country": {"constant": "US"},
    "channel": {"constant": "pos"},
}
HEADER = "id,card,when,amt,shop,fraud"
ROWS = ["e1,0042,1700000000,12.50,s1,0", "e2,0042,1700000060,7,s2,1", "e3,0043,1700000061,0.99,s1,0"]


def write_mapping(folder: Path, fields: dict[str, Any] | None = None, **rest: Any) -> BoundMapping:
    path = folder / "mapping.yaml"
    document = {"fields": {**FIELDS, **(fields or {})}, **rest}
    document["fields"] = {name: source for name, source in document["fields"].items() if source is not None}
    path.write_text(yaml.safe_dump(document))
    return load_mapping(path, CONTRACT)


def write_csv(folder: Path, rows: list[str], header: str = HEADER) -> Path:
    path = folder / "history.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def read(path: Path, mapping: BoundMapping, **options: Any) -> HistoryBatch:
    return concatenate(list(HistoryReader(path, mapping, **options)))


def simulated_csv(folder: Path, events: int) -> Path:
    """The example's export, made by the example's own code."""
    namespace: dict[str, Any] = {"__name__": "example"}
    source = (ROOT / "examples/own-history/make_history.py").read_text()
    exec(compile(source, "make_history.py", "exec"), namespace)
    path = folder / "export.csv"
    history = Simulation(accounts=60, seed=3, fraud_rate=0.05).generate(events)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(namespace["COLUMNS"])
        writer.writerows(namespace["rows"](history))
    return path


def slow_events(path: Path) -> list[dict[str, Any]]:
    """The twin: the example's export, a row and a field at a time."""
    mapping = yaml.load((ROOT / "examples/own-history/mapping.yaml").read_text(), Loader=yaml.BaseLoader)
    kinds = mapping["fields"]["mcc"]["values"]
    events = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file, delimiter=";"):
            local = datetime.strptime(row["Booked"], "%d/%m/%Y %H:%M:%S").replace(tzinfo=ZoneInfo("Europe/Berlin"))
            event = {
                "event_id": row["Ref"],
                "account_id": row["Card token"],
                "timestamp": local.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                "amount": int(row["Cents"]) / 100,
                "currency": row["Ccy"],
                "merchant_id": row["Shop"],
                "mcc": kinds.get(row["Shop kind"], "5999"),
                "country": row["Land"],
                "channel": {"COUNTER": "pos", "CASH": "atm", "WEB": "ecommerce"}[row["Way"]],
            }
            for ours, theirs in (("terminal_id", "Till"), ("device_id", "Handset"), ("ip", "Net address")):
                if row[theirs]:
                    event[ours] = row[theirs]
            events.append(event)
    return sorted(events, key=lambda event: event["timestamp"])


def test_the_example_export_equals_its_slow_twin(tmp_path: Path) -> None:
    path = simulated_csv(tmp_path, 3_000)
    mapping = load_mapping(ROOT / "examples/own-history/mapping.yaml", CONTRACT)
    batches = list(HistoryReader(path, mapping, batch_rows=700))
    assert [len(batch) for batch in batches] == [700, 700, 700, 700, 200]
    assert [event for batch in batches for event in batch.events()] == slow_events(path)


def test_events_and_labels_are_what_the_contract_takes(tmp_path: Path) -> None:
    history = read(simulated_csv(tmp_path, 800), load_mapping(ROOT / "examples/own-history/mapping.yaml", CONTRACT))
    events = TypeAdapter(list[Transaction]).validate_json(b"[" + b",".join(history.events_json()) + b"]")
    labels = TypeAdapter(list[Label]).validate_json(json.dumps(history.labels()))
    assert len(events) == len(labels) == 800
    assert sum(label.fraud for label in labels) == int((history.fraud == 1).sum()) > 0
    for event, label in zip(events, labels, strict=True):
        names = ("event_id", "account_id", "timestamp", "amount", "currency", "merchant_id", "terminal_id", "ip")
        assert [getattr(event, name) for name in names] == [getattr(label, name) for name in names]
        assert label.labelled_at >= label.timestamp
    assert history.label_event(5) == history.labels()[5]


def test_the_sparkov_mapping_reads_rows_of_that_file() -> None:
    path = Path(__file__).parent / "data" / "sparkov_sample.parquet"
    reader = HistoryReader(path, load_mapping(ROOT / "examples/sparkov.yaml", CONTRACT))
    first = next(iter(reader))
    raw = pa.parquet.ParquetFile(path).read_row_group(0).slice(0, len(first)).to_pydict()
    assert first.text["account_id"].tolist() == raw["cc_num"]
    assert first.numbers["amount"].tolist() == raw["amt"]
    assert (first.time_ms // 1000).tolist() == raw["unix_time"]
    assert first.fraud.tolist() == raw["is_fraud"]
    assert (first.known_ms - first.time_ms == 7 * DAY_MS).all()
    event = first.events()[0]
    assert event["attributes"] == {"state": raw["state"][0], "category": raw["category"][0]}
    Transaction.model_validate_json(json.dumps(event))


def test_texts_keep_their_zeros_and_amounts_their_cents(tmp_path: Path) -> None:
    events = read(write_csv(tmp_path, ROWS), write_mapping(tmp_path)).events()
    assert [event["account_id"] for event in events] == ["0042", "0042", "0043"]
    assert [event["amount"] for event in events] == [12.5, 7.0, 0.99]
    assert events[0]["timestamp"] == "2023-11-14T22:13:20.000Z"
    assert "latitude" not in events[0]


def test_yaml_scalars_are_text(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    fields = "\n".join(
        f"  {name}: {{constant: x}}" for name in FIELDS if name not in ("timestamp", "amount", "country")
    )
    path.write_text(
        f"fields:\n{fields}\n  timestamp: {{column: t, unit: s}}\n  amount: a\n  country: {{constant: NO}}\n"
    )
    assert load_mapping(path, CONTRACT).text["country"].constant == "NO"


@pytest.mark.parametrize(
    ("source", "value", "expected_ms"),
    [
        ({"unit": "s"}, "1700000000", 1_700_000_000_000),
        ({"unit": "s"}, "1700000000.25", 1_700_000_000_250),
        ({"unit": "ms"}, "1700000000123", 1_700_000_000_123),
        ({"unit": "us"}, "1700000000123456", 1_700_000_000_123),
        ({"unit": "ns"}, "1700000000000000000", 1_700_000_000_000),
        ({"unit": "min"}, "28333333", 1_699_999_980_000),
        ({"unit": "h", "since": "2023-11-14"}, "22", 1_699_999_200_000),
        ({"unit": "h", "since": "2023-11-14"}, "-1.5", 1_699_914_600_000),
        ({"unit": "d", "since": "2023-11-14T22:13:20+00:00"}, "2", 1_700_172_800_000),
        ({"unit": "s", "since": "2023-11-14T22:13:20Z"}, "86400", 1_700_086_400_000),
        ({"unit": "iso"}, "2023-11-14T22:13:20Z", 1_700_000_000_000),
        ({"unit": "iso"}, "2023-11-14T23:13:20.5+01:00", 1_700_000_000_500),
        ({"unit": "iso"}, "2023-11-14 22:13:20", 1_700_000_000_000),
        ({"unit": "iso", "zone": "Europe/Paris"}, "2023-11-14T23:13:20", 1_700_000_000_000),
        ({"format": "%d.%m.%Y %H:%M", "zone": "America/New_York"}, "14.11.2023 17:13", 1_699_999_980_000),
    ],
)
def test_time_units_formats_and_zones(tmp_path: Path, source: dict[str, str], value: str, expected_ms: int) -> None:
    mapping = write_mapping(tmp_path, {"timestamp": {"column": "when", **source}})
    assert read(write_csv(tmp_path, [f"e1,c1,{value},1,s1,0"]), mapping).time_ms.tolist() == [expected_ms]


@pytest.mark.parametrize(
    ("array", "expected_ms"),
    [
        (pa.array([1_700_000_000_123_456], pa.timestamp("us")), 1_700_000_000_123 - 3_600_000),
        (pa.array([1_700_000_000], pa.timestamp("s", "America/New_York")), 1_700_000_000_000),
        (pa.array([19_675], pa.date32()), 19_675 * DAY_MS - 3_600_000),
    ],
)
def test_parquet_timestamps_need_no_unit(tmp_path: Path, array: pa.Array, expected_ms: int) -> None:
    path = tmp_path / "h.parquet"
    columns = {"id": ["e1"], "card": pa.array([42.0]), "amt": pa.array(["1.5"]), "shop": ["s"], "when": array}
    pa.parquet.write_table(pa.table(columns), path)
    history = read(path, write_mapping(tmp_path, {"timestamp": {"column": "when", "zone": "Europe/Paris"}}))
    assert history.time_ms.tolist() == [expected_ms]
    assert history.text["account_id"].tolist() == ["42"]
    assert history.numbers["amount"].tolist() == [1.5]


def test_amount_units_signs_and_decimal_commas(tmp_path: Path) -> None:
    rows = ["e1;c1;1700000000;-12,50;s;0", "e2;c1;1700000001;-3;s;0"]
    path = write_csv(tmp_path, rows, HEADER.replace(",", ";"))
    options = {"csv": {"delimiter": ";", "decimal": ","}}
    amount: dict[str, Any] = {"column": "amt", "negate": True}
    assert read(path, write_mapping(tmp_path, {"amount": amount}, **options)).numbers["amount"].tolist() == [12.5, 3.0]
    amount |= {"unit": "minor", "minor_digits": 1}
    assert read(path, write_mapping(tmp_path, {"amount": amount}, **options)).numbers["amount"].tolist() == [1.25, 0.3]


def test_row_numbers_serve_as_event_ids_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    table = {"card": ["c"] * 25, "when": range(1_700_000_000, 1_700_000_025), "amt": [1.0] * 25, "shop": ["s"] * 25}
    pa.parquet.write_table(pa.table({name: list(values) for name, values in table.items()}), path)
    mapping = write_mapping(tmp_path, {"event_id": {"row_number": "row-"}})
    assert read(path, mapping, batch_rows=10).text["event_id"].tolist() == [f"row-{n}" for n in range(1, 26)]


def test_attributes_by_name_and_the_rest(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [row + ",a,," for row in ROWS], HEADER + ",x,y,z")
    assert read(path, write_mapping(tmp_path, attributes=["x", "y"])).events()[0]["attributes"] == {"x": "a"}
    rest = read(path, write_mapping(tmp_path, attributes="rest"))
    assert rest.attributes.keys() == {"fraud", "x", "y", "z"}


def test_labels_their_values_and_when_they_became_known(tmp_path: Path) -> None:
    rows = [
        "e1,c,1700000000,1,s,Y,2023-11-20",
        "e2,c,1700000001,1,s,N,",
        "e3,c,1700000002,1,s,,",
        "e4,c,1700000003,1,s,Y,2001-01-01",
    ]
    path = write_csv(tmp_path, rows, HEADER + ",told")
    label = {"column": "fraud", "positive": "Y", "delay": "2d", "known": {"column": "told", "unit": "iso"}}
    history = read(path, write_mapping(tmp_path, label=label))
    assert history.fraud.tolist() == [1, 0, UNKNOWN, 1]
    told_ms = 1_700_438_400_000
    assert history.known_ms.tolist() == [told_ms, 1_700_000_001_000 + 2 * DAY_MS, NEVER_MS, 1_700_000_003_000]
    assert [message["fraud"] for message in history.labels()] == [True, False, True]
    with pytest.raises(ValueError, match="no label"):
        history.label_event(2)
    other = read(path, write_mapping(tmp_path, label={**label, "negative": [""]}, on_bad_row="drop"))
    assert other.fraud.tolist() == [1, 0, 1]
    delayed = read(path, write_mapping(tmp_path, label=label), label_delay_ms=5)
    assert delayed.known_ms[1] == 1_700_000_001_005


def test_a_queue_gives_labels_when_they_are_due(tmp_path: Path) -> None:
    history = Simulation(accounts=50, seed=5, fraud_rate=0.1).generate(2_000)
    for verdicts, wanted in (("fraud", history.fraud == 1), ("all", history.fraud >= 0)):
        queue = LabelQueue("fraud" if verdicts == "fraud" else "all")
        for start in range(0, 2_000, 300):
            queue.push(history.take(slice(start, start + 300)))
        assert len(queue) == int(wanted.sum())
        assert [known_ms for known_ms, _ in queue.waiting()] == sorted(history.known_ms[wanted])
        half_ms = int(np.median(history.known_ms[wanted]))
        before, after = queue.pop(half_ms), queue.pop(NEVER_MS)
        order = sorted(np.flatnonzero(wanted), key=lambda row: (history.known_ms[row], row))
        assert [label["event_id"] for label in before + after] == [history.text["event_id"][row] for row in order]
        assert len(before) == int((history.known_ms[wanted] <= half_ms).sum())
        assert queue.pop(NEVER_MS) == []


def test_a_packed_file_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "history.csv.gz"
    path.write_bytes(gzip.compress("\n".join(ROWS).encode()))
    history = read(path, write_mapping(tmp_path, csv={"columns": HEADER.split(",")}))
    assert history.text["event_id"].tolist() == ["e1", "e2", "e3"]


def test_the_number_of_rows_is_known_beforehand(tmp_path: Path) -> None:
    mapping = write_mapping(tmp_path)
    assert HistoryReader(write_csv(tmp_path, ROWS), mapping).total_rows() == 3
    path = tmp_path / "open.csv"
    path.write_text("\n".join([HEADER, *ROWS]))
    assert HistoryReader(path, mapping).total_rows() == 3, "the last line has no end"
    packed = tmp_path / "history.csv.gz"
    packed.write_bytes(gzip.compress("\n".join(ROWS).encode()))
    headless = write_mapping(tmp_path, csv={"columns": HEADER.split(",")})
    assert HistoryReader(packed, headless).total_rows() == 3
    table = pa.table({name: [row.split(",")[i] for row in ROWS] for i, name in enumerate(HEADER.split(","))})
    pa.parquet.write_table(table, tmp_path / "history.parquet")
    assert HistoryReader(tmp_path / "history.parquet", mapping).total_rows() == 3


def test_a_file_out_of_order_is_refused_or_sorted(tmp_path: Path) -> None:
    rows = ["e1,c,1700000009,1,s,0", "e2,c,1700000005,1,s,0", "e3,c,1700000005,1,s,0"]
    path = write_csv(tmp_path, rows)
    with pytest.raises(ConfigError, match=r"not in order of time.*22:13:25.*22:13:29.*sort: true"):
        read(path, write_mapping(tmp_path))
    assert read(path, write_mapping(tmp_path, sort=True)).text["event_id"].tolist() == ["e2", "e3", "e1"]


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        (",c,1700000000,1,s,0", "id", "is empty, but required"),
        ("e1,,1700000000,1,s,0", "card", "is empty, but required"),
        ("e1,c,,1,s,0", "when", "is empty, but required"),
        ("e1,c,yesterday,1,s,0", "when", "not a time"),
        ("e1,c,1700000000000,1,s,0", "when", "is the unit right?"),
        ("e1,c,1700000000,,s,0", "amt", "is empty, but required"),
        ("e1,c,1700000000,many,s,0", "amt", "is not a number"),
        ("e1,c,1700000000,-1,s,0", "amt", "greater than or equal to 0"),
        ("e1,c,1700000000,nan,s,0", "amt", "not a finite number"),
        ("e1,c,1700000000,inf,s,0", "amt", "not a finite number"),
        ("e1,c,1700000000,1e15,s,0", "amt", "less than or equal to"),
        ("e1," + "c" * 200 + ",1700000000,1,s,0", "card", "at most 128 characters"),
    ],
)
def test_a_bad_row_stops_or_is_counted(tmp_path: Path, row: str, column: str, words: str) -> None:
    path = write_csv(tmp_path, ["good,c,1699999999,1,s,0", row, "last,c,1700000001,1,s,0"])
    with pytest.raises(ConfigError) as caught:
        read(path, write_mapping(tmp_path))
    message = str(caught.value)
    assert str(path) in message
    assert "row 2 (line 3" in message
    assert f"column {column!r}" in message
    assert words in message
    assert "on_bad_row: drop" in message
    assert "c" * 200 not in message
    reader = HistoryReader(path, write_mapping(tmp_path, on_bad_row="drop"))
    assert [event["event_id"] for batch in reader for event in batch.events()] == ["good", "last"]
    assert (reader.summary.rows, reader.summary.events) == (3, 2)
    (reason,) = reader.summary.dropped
    assert words in reason
    assert "3 rows read, 2 events" in reader.summary.lines()[0]


def test_values_that_the_table_lacks(tmp_path: Path) -> None:
    path = write_csv(tmp_path, ["e1,c,1700000000,1,food,0", "e2,c,1700000001,1,toys,0"])
    source: dict[str, Any] = {"column": "shop", "values": {"food": "5411"}}
    with pytest.raises(ConfigError, match=r"row 2.*'shop'.*not in the mapping's `values`"):
        read(path, write_mapping(tmp_path, {"mcc": source}))
    history = read(path, write_mapping(tmp_path, {"mcc": {**source, "otherwise": "5999"}}))
    assert history.text["mcc"].tolist() == ["5411", "5999"]


def test_ragged_lines(tmp_path: Path) -> None:
    rows = [*ROWS[:1], "e9,c,1700000001", *ROWS[1:], "e4,c,x,1,s,0"]
    path = write_csv(tmp_path, rows)
    with pytest.raises(ConfigError, match=r"row 2 \(line 3.* has another number of columns"):
        read(path, write_mapping(tmp_path))
    reader = HistoryReader(path, write_mapping(tmp_path, on_bad_row="drop"))
    assert sum(len(batch) for batch in reader) == 3
    assert reader.summary.rows == 5
    assert reader.summary.dropped["3 columns where 6 are expected"] == 1


def test_rows_keep_their_numbers_in_later_blocks(tmp_path: Path) -> None:
    rows = [f"e{n},c,{1_600_000_000 + n},1,{'s' * 100},0" for n in range(60_000)]
    path = write_csv(tmp_path, [*rows, "e,c,1700000001"])
    assert path.stat().st_size > 4 * 1024 * 1024
    with pytest.raises(ConfigError, match=r"row 60001 \(line 60002"):
        read(path, write_mapping(tmp_path))
    path = write_csv(tmp_path, [*rows, "e,c,never,1,s,0"])
    with pytest.raises(ConfigError, match=r"row 60001 \(line 60002"):
        read(path, write_mapping(tmp_path))


@pytest.mark.parametrize(
    ("fields", "rest", "words"),
    [
        ({"mcc": None, "country": None}, {}, "no source for the required country, mcc"),
        ({"merchant_id": "store"}, {}, "fields.merchant_id: no column 'store'"),
        ({"nonsense": "id"}, {}, "fields.nonsense: there is no such field"),
        ({"currency": {"constant": "EURO"}}, {}, "fields.currency: the constant 'EURO' is refused"),
        ({"currency": {"column": "id", "constant": "USD"}}, {}, "exactly one of column, constant and row_number"),
        ({"mcc": {"constant": "1", "values": {"a": "b"}}}, {}, "values translates a column"),
        ({"timestamp": "when"}, {}, "give its unit"),
        ({"timestamp": {"column": "when", "unit": "weeks"}}, {}, "fields.timestamp.unit"),
        ({"timestamp": {"column": "when", "unit": "h", "since": "May"}}, {}, "since: write a date (2020-07-01)"),
        ({"timestamp": {"column": "when", "unit": "h", "since": "2023-02-30"}}, {}, "since: write a date"),
        ({"timestamp": {"column": "when", "unit": "iso", "since": "2023-11-14"}}, {}, "since goes with a unit"),
        ({"timestamp": {"column": "when", "unit": "h"}}, {}, "before 1990 or after 2100"),
        ({"timestamp": {"column": "when", "unit": "iso", "zone": "Mars/Base"}}, {}, "'Mars/Base' is not known"),
        ({}, {"attributes": ["colour"]}, "attributes: no column 'colour'"),
        ({}, {"label": {"column": "fraud", "positive": ["1"]}}, "label.delay"),
        ({}, {"label": {"column": "fraud", "positive": ["1"], "delay": "soon"}}, "such as 7d"),
        ({}, {"label": {"column": "fraud", "positive": ["1"], "negative": ["x"], "delay": "7d"}}, "neither among"),
        ({}, {"on_bad_row": "ignore"}, "on_bad_row"),
        ({}, {"colour": "blue"}, "colour"),
    ],
)
def test_a_wrong_mapping_says_what_to_do(
    tmp_path: Path, fields: dict[str, Any], rest: dict[str, Any], words: str
) -> None:
    rows = ["e1,c,2023-11-14T22:13:20,1,s,0"] if "iso" in str(fields) else ROWS
    path = write_csv(tmp_path, rows)
    with pytest.raises(ConfigError) as caught:
        read(path, write_mapping(tmp_path, fields, **rest))
    assert words in str(caught.value)


def test_a_missing_field_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has the columns id, card, when, amt, shop, fraud"):
        HistoryReader(write_csv(tmp_path, ROWS), write_mapping(tmp_path, {"mcc": None}))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    mapping = write_mapping(tmp_path)
    with pytest.raises(ConfigError, match="there is no such file"):
        HistoryReader(tmp_path / "none.csv", mapping)
    with pytest.raises(ConfigError, match="CSV or Parquet"):
        HistoryReader(tmp_path / "history.dat", mapping)
    broken = tmp_path / "h.parquet"
    broken.write_bytes(b"not parquet at all")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        HistoryReader(broken, mapping)
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read as CSV"):
        HistoryReader(empty, mapping)
    latin = tmp_path / "latin.csv"
    latin.write_bytes((HEADER + "\n" + ROWS[0].replace("s1", "caf\xe9") + "\n").encode("latin-1"))
    with pytest.raises(ConfigError, match="encoding utf-8"):
        read(latin, mapping)
    assert read(latin, write_mapping(tmp_path, csv={"encoding": "latin-1"})).text["merchant_id"].tolist() == ["caf\xe9"]
