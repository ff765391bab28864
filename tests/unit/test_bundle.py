"""A bundle verifies whole or is refused: every check has a case that it must refuse."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.export import export_bundle, script, write_bundle
from stream.clock import ManualClock
from stream.errors import BundleRefused, ConfigError
from stream.scoring import bundle
from stream.scoring.scorer import TorchScorer
from tests.unit.model_fixtures import lay_out, quick_bundle, quick_model, random_batch, reseal, tiny_domain
from tests.unit.scripted_nets import Constant

FILES = ("manifest.json", "model.ts", "reference.json", "model.pt2", "golden.npz")
KEY = b"a signature key of the tests"


def refused(directory: Path, match: str, **arguments: Any) -> None:
    with pytest.raises(BundleRefused, match=match):
        bundle.verify(directory, **arguments)


@pytest.fixture
def files() -> dict[str, bytes]:
    return dict(quick_bundle()[1])


def test_a_bundle_as_written_verifies(tmp_path: Path, files: dict[str, bytes]) -> None:
    domain = quick_bundle()[0]
    verified = bundle.verify(lay_out(tmp_path / "b", files), domain=domain, expected_spec_id=domain.spec_id)
    manifest = verified.manifest
    assert set(files) == set(FILES)
    assert manifest.label == "tiny@1"
    assert manifest.components == ("sequence", "aggregate")
    assert verified.program == files["model.ts"]
    assert manifest.step_columns == tuple(column.name for column in domain.step_columns)
    assert manifest.training.command == "riskstream train tiny.csv"
    assert 0 < manifest.thresholds.review <= manifest.thresholds.decline < 1
    assert manifest.thresholds.review_rate <= manifest.thresholds.alert_rate


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_in_any_file_is_refused(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    directory = lay_out(tmp_path / "b", files)
    random = np.random.default_rng(0)
    places = {0, len(files[name]) - 1, *random.integers(0, len(files[name]), 120).tolist()}
    for place in sorted(places):
        content = bytearray(files[name])
        content[place] ^= 1 << int(random.integers(0, 8))
        (directory / name).write_bytes(content)
        refused(directory, name.replace(".", r"\."), golden=False)
    (directory / name).write_bytes(files[name])
    bundle.verify(directory, golden=False)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_a_longer_file_is_refused(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    directory = lay_out(tmp_path / "b", files)
    for content in (files[name][:-1], files[name] + b"\n", b""):
        (directory / name).write_bytes(content)
        refused(directory, name, golden=False)


def test_respelling_the_manifest_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    directory = lay_out(tmp_path / "b", files)
    fields = json.loads(files["manifest.json"])
    for text in (json.dumps(fields), json.dumps(fields, indent=1, sort_keys=True), "[1]", "{}", "[" * 100_000):
        (directory / "manifest.json").write_text(text)
        refused(directory, r"manifest\.json", golden=False)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    directory = lay_out(tmp_path / "b", files)
    (directory / name).unlink()
    refused(directory, f"{name}: missing", golden=False)


def test_what_is_not_listed_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    directory = lay_out(tmp_path / "b", files)
    (directory / "sitecustomize.py").write_text("")
    refused(directory, r"sitecustomize\.py: in the folder but not", golden=False)
    (directory / "sitecustomize.py").unlink()
    (directory / "folder").mkdir()
    refused(directory, "folder: in the folder but not", golden=False)


def test_links_pipes_and_folders_in_the_place_of_files_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(files["model.ts"])
    for number, replace in enumerate((lambda p: p.symlink_to(outside), os.mkfifo, lambda p: p.mkdir())):
        directory = lay_out(tmp_path / f"b{number}", files)
        (directory / "model.ts").unlink()
        replace(directory / "model.ts")
        refused(directory, r"model\.ts: not a", golden=False)
    refused(tmp_path / "nowhere", "bundle folder")
    refused(outside, "bundle folder")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "..", ".hidden", "", "a\0b", "manifest.json"])
def test_file_names_that_lead_elsewhere_are_refused(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    (tmp_path / "outside").write_bytes(b"")
    fields = json.loads(files["manifest.json"])
    listed = {**fields["files"], name: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    directory = lay_out(tmp_path / "b", {**files, "manifest.json": bundle.seal({**fields, "files": listed})})
    refused(directory, "files", golden=False)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format_version": 2}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../x"}, "name"),
        ({"outputs": [{"name": "log_odds", "kind": "log_odds"}]}, "'probability' is required"),
        ({"outputs": [{"name": "probability", "kind": "probability"}]}, "'log_odds' is required"),
        ({"step_columns": []}, "step_columns"),
        ({"step_columns": ["s0", "s0"]}, "names repeat"),
        ({"aggregate_references": {}}, "aggregate_references"),
        ({"bands": []}, "bands"),
        ({"bands": [{"name": n, "minimum": m} for n, m in (("a", 0.0), ("b", 0.5), ("c", 0.4))]}, "bands"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, files: dict[str, bytes], changes: dict[str, Any], match: str
) -> None:
    refused(lay_out(tmp_path / "b", reseal(files, **changes)), match, golden=False)


def test_decline_below_review_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    thresholds = json.loads(files["manifest.json"])["thresholds"] | {"review": 0.9, "decline": 0.8}
    refused(lay_out(tmp_path / "b", reseal(files, thresholds=thresholds)), "thresholds", golden=False)


def test_another_domain_is_refused_and_told_apart(tmp_path: Path, files: dict[str, bytes]) -> None:
    directory = lay_out(tmp_path / "b", files)
    refused(directory, r"spec_id: .*differ in: aggregates\)", domain=tiny_domain(aggregate=6), golden=False)
    refused(directory, r"spec_id: .*differ in: sequence_length\)", domain=tiny_domain(sequence_length=9), golden=False)
    refused(directory, "spec_id", expected_spec_id="0" * 16, golden=False)


def test_columns_and_lengths_that_the_domain_lacks_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    domain = quick_bundle()[0]
    columns = ["s0", "s1", "s2", "s3", "gone"]
    lacking = reseal(files, step_columns=columns, step_references=dict.fromkeys(columns))
    refused(lay_out(tmp_path / "b", lacking), "the domain lacks .*gone", domain=domain, golden=False)
    longer = reseal(files, sequence_length=9)
    refused(lay_out(tmp_path / "c", longer), "sequence_length", domain=domain, golden=False)


def golden_with(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    with np.load(io.BytesIO(files["golden.npz"])) as file:
        arrays = {name: file[name] for name in file.files}
    for name, change in changes.items():
        arrays[name.replace("__", ".")] = change(arrays[name.replace("__", ".")].copy())
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **{name: value for name, value in arrays.items() if value is not None})
    return reseal({**files, "golden.npz": buffer.getvalue()})


def set_first(value: float) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array[0] = value
        return array

    return change


def test_golden_outputs_must_reproduce(tmp_path: Path, files: dict[str, bytes]) -> None:
    bundle.verify(lay_out(tmp_path / "same", golden_with(files, output__probability=lambda a: a + 5e-6)))
    cases = {
        "differs by": {"output__probability": lambda a: a + 2e-5},
        "'sequence' differs by": {"output__sequence": lambda a: a - 0.1},
        "'aggregate' differs by nan": {"output__aggregate": set_first(np.nan)},
        "'log_odds' differs by": {"aggregates": lambda a: a[::-1].copy()},
        "golden.npz: holds": {"lengths": lambda a: a[:-1]},
    }
    for number, (match, changes) in enumerate(cases.items()):
        refused(lay_out(tmp_path / f"{number}", golden_with(files, **changes)), match)


def test_golden_files_of_another_kind_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    refused(lay_out(tmp_path / "a", golden_with(files, output__probability=lambda a: None)), "golden.npz: holds")
    refused(lay_out(tmp_path / "b", golden_with(files, steps=lambda a: a[:0], lengths=lambda a: a[:0])), "golden.npz")
    refused(lay_out(tmp_path / "c", golden_with(files, lengths=lambda a: a.astype(object))), "golden.npz: .*pickle")
    refused(lay_out(tmp_path / "d", reseal({**files, "golden.npz": b"not a zip"})), "golden.npz")


def test_programs_that_fail_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    refused(lay_out(tmp_path / "a", reseal({**files, "model.ts": b"not TorchScript"})), "model.ts: does not load")
    refused(lay_out(tmp_path / "b", reseal({**files, "model.ts": pickle.dumps([1])})), "model.ts: does not load")
    inputs = random_batch(0, 3, quick_bundle()[0])
    constant = {**files, "model.ts": script(Constant(0.5), inputs)}
    refused(lay_out(tmp_path / "c", reseal(constant)), "golden outputs")
    infinite = {**files, "model.ts": script(Constant(float("nan")), inputs)}
    refused(lay_out(tmp_path / "d", reseal(infinite)), "not finite")
    narrow = tiny_domain(step=3)
    other, _ = quick_model(domain=narrow)
    wrong_width = {**files, "model.ts": script(other.net, random_batch(0, 3, narrow))}
    refused(lay_out(tmp_path / "e", reseal(wrong_width)), "model.ts: raised")


def test_signatures(tmp_path: Path, files: dict[str, bytes]) -> None:
    refused(lay_out(tmp_path / "unsigned", files), "not signed", signature_key=KEY, golden=False)
    signed = lay_out(tmp_path / "signed", reseal(files, KEY))
    assert bundle.verify(signed, signature_key=KEY, golden=False).manifest.signature is not None
    bundle.verify(signed, golden=False)
    refused(signed, "not made with the configured key", signature_key=b"another", golden=False)
    fields = json.loads((signed / "manifest.json").read_bytes())
    forged = bundle.seal({**fields, "version": "2"}, b"guessed")
    (signed / "manifest.json").write_bytes(forged)
    bundle.verify(signed, golden=False)
    refused(signed, "not made with the configured key", signature_key=KEY, golden=False)


def test_nothing_is_unpickled(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = lay_out(tmp_path / "b", files)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, forbidden)
    domain = quick_bundle()[0]
    TorchScorer(bundle.verify(directory, domain=domain), domain)


def test_hashes_and_spec_need_no_torch(tmp_path: Path, files: dict[str, bytes]) -> None:
    directory = lay_out(tmp_path / "b", files)
    program = (
        "import sys, pathlib\n"
        "from stream.scoring import bundle, scorer\n"
        "print(bundle.verify(pathlib.Path(sys.argv[1]), golden=False).manifest.label)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "tiny@1\n"


def test_export_does_not_overwrite_and_leaves_nothing_behind(tmp_path: Path, files: dict[str, bytes]) -> None:
    trained, domain = quick_model()
    taken = tmp_path / "taken"
    taken.mkdir()
    names = {"name": "tiny", "version": "1", "command": "x", "clock": ManualClock()}
    with pytest.raises(ConfigError, match="exists already"):
        export_bundle(trained, domain, taken, **names)
    fields = {n: v for n, v in json.loads(files["manifest.json"]).items() if n not in ("files", "digest", "signature")}
    broken = {n: c for n, c in files.items() if n != "manifest.json"} | {"model.ts": b"no program"}
    with pytest.raises(BundleRefused, match=r"model\.ts"):
        write_bundle(tmp_path / "new", broken, fields, domain=domain)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert list(taken.iterdir()) == []
