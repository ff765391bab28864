"""The command line: what it says, what it imports, how it ends. No servers: Kafka and the store are in memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import stream.app
import stream.cli.connection
import stream.errors
from stream.cli import root
from stream.cli.interrupt import stop_on_signals
from stream.cli.progress import Steps
from stream.config import Settings
from stream.errors import RiskstreamError
from stream.kafka.memory import MemoryBroker
from stream.kafka.port import TopicPartition
from stream.state.memory import MemoryStore
from stream.state.store import Checkpoint
from tests.unit.conftest import Shell

COMMANDS = [
    *(
        [name]
        for name in (
            "demo",
            "run",
            "score",
            "simulate",
            "replay",
            "alerts",
            "audit",
            "quality",
            "doctor",
            "config",
            "version",
        )
    ),
    *(["stack", name] for name in ("up", "down", "status")),
    *(["topics", name] for name in ("create", "check")),
    *(["bundle", name] for name in ("inspect", "verify", "sign")),
    *(["model", name] for name in ("deploy", "rollback", "remove", "status")),
    ["state", "rebuild"],
    ["rights"],
    ["quality"],
    *(["deadletter", name] for name in ("list", "show", "redrive")),
]


def imported(*words: str) -> set[str]:
    """What a command imports, in a process of its own: top-level packages, and models.cli.train."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stream.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip() for line in lines}
    return {name.partition(".")[0] for name in names} - {"models"} | names & {"models.cli.train"}


# --- help and imports


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_teaches(shell: Shell, words: list[str]) -> None:
    told = shell(*words, "--help")
    assert told.code == 0
    assert f"Usage: riskstream {' '.join(words)}" in told.out
    assert "Example" in told.out
    assert f"  riskstream {' '.join(words)}" in told.out.replace('eval "$(', "  ") or "--config" in told.out


def test_the_root_help_names_every_command_with_a_summary(shell: Shell) -> None:
    told = shell("--help").out
    section = told.partition("Commands:")[2].splitlines()
    summaries = {line.split()[0]: line.split()[1:] for line in section if line.startswith("  ") and line[2] != " "}
    assert {words[0] for words in COMMANDS} <= set(summaries)
    assert all(summaries.values()), summaries


def test_a_group_or_nothing_at_all_shows_help(shell: Shell) -> None:
    for words in ([], ["stack"], ["topics"], ["bundle"], ["model"], ["state"], ["deadletter"]):
        ended = shell(*words)
        assert "Commands:" in ended.out + ended.err


def test_root_help_imports_no_command_and_no_library() -> None:
    packages = imported("--help")
    assert not packages & {
        "torch",
        "numpy",
        "kafka",
        "redis",
        "pydantic",
        "pyarrow",
        "rich",
        "structlog",
        "models.cli.train",
    }


@pytest.mark.parametrize("words", [["config"], ["version"], ["stack", "status", "--help"], ["run", "--help"]], ids=str)
def test_what_neither_scores_nor_trains_does_not_import_what_it_does_not_need(words: list[str]) -> None:
    packages = imported(*words)
    assert not packages & {"torch", "numpy", "pyarrow", "kafka", "redis", "rich", "structlog", "models.cli.train"}


@pytest.mark.parametrize("module", ["audit", "alerts", "topics", "doctor", "state", "replay", "simulate", "bundle"])
def test_no_torch_in_any_command_that_does_not_score(module: str) -> None:
    bodies = {"doctor": "examining", "replay": "replaying", "simulate": "simulating"}
    names = f"stream.cli.{module}, stream.cli.connection, stream.cli.settings, stream.topics"
    if module in bodies:
        names += f", stream.cli.{bodies[module]}"
    if module == "bundle":
        names += ", stream.scoring.bundle"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- errors


def all_errors(kind: type[RiskstreamError] = RiskstreamError) -> Iterator[type[RiskstreamError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == stream.errors.__name__:
            yield from all_errors(below)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command `fails` that another package adds: its module file, written by the test."""
    file = tmp_path / "plugged_in.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugged_in", raising=False)
    point = EntryPoint("fails", "plugged_in:app", root.ENTRY_POINTS)
    monkeypatch.setattr(root, "entry_points", lambda group: [point] if group == root.ENTRY_POINTS else [])
    return file


def write_plugin(file: Path, body: str) -> None:
    file.write_text(
        f'"""A command from elsewhere."""\nimport typer\nimport stream.errors as errors\n'
        f"app = typer.Typer(rich_markup_mode=None)\n@app.command()\ndef fails() -> None:\n    {body}\n"
    )


@pytest.mark.parametrize("kind", list(all_errors()), ids=lambda kind: kind.__name__)
def test_an_expected_error_is_one_line_and_its_own_exit_code(shell: Shell, plugin: Path, kind: type[Any]) -> None:
    write_plugin(plugin, f"raise errors.{kind.__name__}('what happened; what to do')")
    ended = shell("fails")
    assert ended == (kind.exit_code, "", "error: what happened; what to do\n")


def test_an_unexpected_error_shows_its_place_and_not_its_text(shell: Shell, plugin: Path) -> None:
    write_plugin(plugin, "raise KeyError('4000123412341234')")
    ended = shell("fails")
    assert ended.code == 1
    assert ended.err == "error: unexpected KeyError at plugged_in.py:7; --debug shows the whole of it\n"
    whole = shell("fails", "--debug")
    assert whole.code == 1
    assert "Traceback" in whole.err
    assert "4000123412341234" in whole.err


def test_ctrl_c_is_quiet_and_130(shell: Shell, plugin: Path) -> None:
    write_plugin(plugin, "raise KeyboardInterrupt")
    assert shell("fails") == (130, "", "")


def test_a_command_from_another_package_is_imported_when_it_is_called(shell: Shell, plugin: Path) -> None:
    write_plugin(plugin, "print('ran')")
    assert "A command from elsewhere." in shell("--help").out
    assert "plugged_in" not in sys.modules
    assert shell("fails").out == "ran\n"
    assert "plugged_in" in sys.modules


def test_a_misspelt_command_gets_a_suggestion(shell: Shell) -> None:
    ended = shell("aduit")
    assert ended.code == 2
    assert "Did you mean 'audit'?" in ended.err


# --- settings


def test_global_options_stand_anywhere(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("kafka: {group: from-the-file}\nbatch: {max_events: 99}\n")
    for words in (
        ["--config", file, "--set", "kafka.group=fraud", "config", "--json"],
        ["config", "--json", "--set=kafka.group=fraud", f"--config={file}"],
    ):
        document = shell(*words).document
        assert (document["kafka.group"]["value"], document["kafka.group"]["origin"]) == ("fraud", "command line")
        assert document["batch.max_events"]["origin"] == f"file {file}"
        assert document["kafka.worker_id"]["origin"] == "default"


def test_a_wrong_setting_names_the_field_and_ends_with_2(shell: Shell) -> None:
    for words, expected in (
        (["--set", "batch.max_events=none"], "batch.max_events"),
        (["--set", "kafka.grop=x"], "did you mean kafka.group?"),
        (["--set", "nonsense"], "write NAME=VALUE"),
    ):
        ended = shell(*words, "config")
        assert ended.code == 2
        assert expected in ended.err
        assert "Traceback" not in ended.err


def test_config_masks_secrets(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_REDIS__URL", "redis://user:hunter2@127.0.0.1:6379/0")
    for words in (["config"], ["config", "--json"], ["config", "--changed"], ["config", "--describe"]):
        ended = shell(*words, "--set", "kafka.sasl_password=hunter2")
        assert "hunter2" not in ended.out + ended.err
        assert "RISKSTREAM_KAFKA__SASL_PASSWORD" in ended.err
        assert "redis://user:" in ended.out


def test_version_as_json(shell: Shell) -> None:
    document = shell("version", "--json").document
    assert document["riskstream"] == stream.__version__
    assert document["libraries"]["pydantic"]


# --- with Kafka in memory


def test_topics_are_created_once_and_checked(shell: Shell, broker: MemoryBroker) -> None:
    assert shell("topics", "check").code == 12
    first = shell("topics", "create", "--partitions", "3", "--json").document
    assert [topic["created"] for topic in first] == [True] * 5
    again = shell("topics", "create", "--partitions", "3", "--json").document
    assert [topic["created"] for topic in again] == [False] * 5
    assert set(shell("topics", "check", "--json").document.values()) == {3}


def test_another_partition_count_is_refused_before_anything_is_made(shell: Shell, broker: MemoryBroker) -> None:
    broker.create_topic("labels", partitions=3)
    ended = shell("topics", "create", "--partitions", "4")
    assert ended.code == 12
    assert "labels exists with 3 partitions, 4 were asked for" in ended.err
    assert broker.describe("transactions") is None


def test_a_dead_letter_of_the_largest_message_fits_its_topic(shell: Shell, broker: MemoryBroker) -> None:
    shell("topics", "create")
    sizes = {}
    for name in ("transactions", "transactions.dlq"):
        described = broker.describe(name)
        assert described is not None
        sizes[name] = int(described.config["max.message.bytes"])
    assert sizes["transactions"] > 900 * 1024
    assert sizes["transactions.dlq"] > sizes["transactions"] * 4 / 3 + 16_384


def test_simulate_publishes_and_goes_on_where_it_ended(shell: Shell, broker: MemoryBroker) -> None:
    shell("topics", "create", "--partitions", "2")
    options = ["simulate", "--events", "300", "--rate", "20000", "--accounts", "50", "--json"]
    first, second = shell(*options), shell(*options)
    assert first.document["events"] == second.document["events"] == 300
    assert "goes on after the newest event" in second.err
    assert second.document["last_event"] > first.document["last_event"]
    assert sum(broker.log(TopicPartition("transactions", n)).next_offset for n in range(2)) == 600


@pytest.fixture
def history(shell: Shell, tmp_path: Path) -> tuple[Path, Path]:
    """Two thousand simulated payments as a file, and its mapping."""
    file = tmp_path / "history.parquet"
    document = shell(
        "simulate", "--events", "2000", "--accounts", "40", "--fraud-rate", "0.2", "--out", file, "--json"
    ).document
    assert document["events"] == 2000
    assert document["frauds"] > 0
    return file, Path(document["mapping"])


def test_as_many_simulated_events_as_asked_for_and_none_of_the_future(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "history.parquet"
    document = shell(
        "simulate", "--events", "9000", "--accounts", "20", "--days", "10", "--out", file, "--json"
    ).document
    assert document["events"] == 9000
    newest = pq.read_table(file, columns=["timestamp"])["timestamp"].to_pylist()[-1]
    assert newest < datetime.now(UTC)


def test_replay_publishes_the_file_and_its_labels(
    shell: Shell, broker: MemoryBroker, history: tuple[Path, Path]
) -> None:
    file, mapping = history
    shell("topics", "create", "--partitions", "1")
    document = shell("replay", file, "--mapping", mapping, "--json").document
    assert document["events"] == 2000
    assert document["labels"] > 0
    assert broker.log(TopicPartition("transactions", 0)).next_offset == 2000
    assert broker.log(TopicPartition("labels", 0)).next_offset == document["labels"]


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "nan"])
def test_replay_refuses_a_speed_that_is_none(shell: Shell, history: tuple[Path, Path], speed: str) -> None:
    ended = shell("replay", history[0], "--mapping", history[1], "--speed", speed)
    assert ended.code == 2
    assert "--speed" in ended.err


def test_replay_needs_topics(shell: Shell, broker: MemoryBroker, history: tuple[Path, Path]) -> None:
    ended = shell("replay", history[0], "--mapping", history[1])
    assert ended.code == 12
    assert "riskstream topics create" in ended.err


def test_audit_of_topics_without_outputs_fails_with_1(
    shell: Shell, broker: MemoryBroker, history: tuple[Path, Path]
) -> None:
    shell("topics", "create", "--partitions", "2")
    assert shell("audit").code == 0
    shell("replay", history[0], "--mapping", history[1], "--limit", "50")
    ended = shell("audit", "--json")
    assert ended.code == 1
    assert ended.document["pending"] == 50
    assert "every event exactly once: NO" in shell("audit").out


def test_alerts_are_readable_and_masked(shell: Shell, broker: MemoryBroker) -> None:
    shell("topics", "create", "--partitions", "2")
    assert shell("alerts").out == "no alerts yet\n"
    for number in range(30):
        alert = {
            "account_id": f"4000-{number:04d}",
            "amount": 12.5,
            "currency": "EUR",
            "score": 900 + number,
            "band": "severe",
            "decision": "decline",
            "rules": [{"name": "block:country", "reason": "blocked country"}],
            "reasons": [{"text": "9 payments in 10 min, usually 1.0 per day"}],
            "flags": ["late"],
            "scored_at": "2026-11-23T10:11:12.345Z",
        }
        broker.append("alerts", json.dumps(alert).encode(), partition=number % 2, timestamp_ms=1_000 + number)
    broker.append("alerts", b"not an alert", partition=0, timestamp_ms=5_000)
    shown = shell("alerts", "--last", "4").out
    assert [line.split("score ")[1][:3] for line in shown.splitlines() if "score " in line] == ["927", "928", "929"]
    assert "DECLINE" in shown
    assert "9 payments in 10 min, usually 1.0 per day" in shown
    assert "blocked country (rule block:country)" in shown
    assert "reservations: late" in shown
    assert "…0929" not in shown
    assert "…0029" in shown
    assert "4000-0029" not in shown
    lines = shell("alerts", "--last", "3", "--max", "1", "--json").out.splitlines()
    assert [json.loads(line)["account_id"] for line in lines] == ["4000-0028"]


def test_following_alerts_ends_after_so_many(shell: Shell, broker: MemoryBroker) -> None:
    shell("topics", "create", "--partitions", "1")
    broker.append("alerts", b'{"decision": "old"}', partition=0)
    timer = threading.Timer(0.3, lambda: broker.append("alerts", b'{"decision": "new"}', partition=0))
    timer.start()
    ended = shell("alerts", "--follow", "--last", "0", "--max", "1", "--json")
    timer.join()
    assert ended.code == 0
    assert ended.document["decision"] == "new"


def test_state_is_dropped_for_the_partitions_asked_for(
    shell: Shell, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("topics", "create", "--partitions", "3")
    store = MemoryStore("riskstream", stream.app.load_domain(Settings()).spec_id)
    monkeypatch.setattr(stream.app, "open_store", lambda settings, domain: store)
    for number in range(3):
        store.write_checkpoints({number: Checkpoint(5, 0)}, {number: store.claim(number, "riskstream-w0", 0)})
    refused = shell("state", "rebuild", "--partition", "7", "--yes")
    assert refused.code == 2
    document = shell("state", "rebuild", "--partition", "1", "--yes", "--json").document
    assert document["dropped_keys"] == {"1": 1}
    heads = [store.load_head(number) for number in range(3)]
    assert [head is not None and head.checkpoint for head in heads] == [Checkpoint(5, 0), None, Checkpoint(5, 0)]
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    assert shell("state", "rebuild").code == 1
    assert store.load_head(0) == heads[0]


# --- files


def test_score_without_a_model_gives_a_row_per_event(shell: Shell, history: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    document = shell("score", history[0], "--mapping", history[1], "--out", out, "--json").document
    rows = pq.read_table(out).to_pylist()
    assert document["scored"] == len(rows) == 2000
    assert [row["offset"] for row in rows] == list(range(2000))
    assert {tuple(row["flags"]) for row in rows} >= {("rules_only",)}
    assert rows[-1]["labels_offset"] > 0


def test_labels_can_be_learnt_where_another_run_learnt_them(
    shell: Shell, history: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    options = ["--mapping", history[1], "--partitions", "2"]
    shell("score", history[0], *options, "--out", first)
    ended = shell("score", history[0], *options, "--out", second, "--label-positions", first)
    assert ended.code == 0, ended.err
    columns = ["partition", "offset", "labels_offset", "event_id"]
    assert pq.read_table(second, columns=columns) == pq.read_table(first, columns=columns)
    wrong = shell("score", history[0], "--mapping", history[1], "--out", second, "--label-positions", first)
    assert wrong.code == 2
    assert "give more --partitions" in wrong.err


def test_a_bundle_that_is_none_is_refused(shell: Shell, tmp_path: Path) -> None:
    for words in (["inspect", tmp_path], ["verify", tmp_path], ["inspect", tmp_path / "nowhere"]):
        ended = shell("bundle", *words)
        assert ended.code == 16
        assert ended.err.startswith("error: ")


def test_a_stack_that_was_never_started_is_down(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_CACHE", str(tmp_path))
    assert shell("stack", "status").code == 1
    assert shell("stack", "status", "--json").document["running"] is False
    assert shell("stack", "down").out == "nothing was running\n"
    assert shell("stack", "up", "--kafka", "none").code == 2


# --- signals


def test_the_first_signal_asks_and_the_second_insists() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_short_command_elsewhere_than_on_a_terminal_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps() as steps:
        steps.show("events", 1, 10)
    assert capsys.readouterr().err == ""
