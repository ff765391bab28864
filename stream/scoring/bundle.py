"""A model bundle: a flat folder that either verifies whole or is refused.

    manifest.json   what the model is and what it needs, and the SHA-256 of every other file
    model.ts        frozen TorchScript: the only file whose code a worker runs
    model.pt2       the same model as a torch.export program; hashed here, never loaded by a worker
    golden.npz      inputs and the outputs that the model must reproduce from them (no pickle)
    reference.json  how scores and features were spread when it was made (optional): see reference.py
    card.json, report.html  the model card (optional)

The manifest carries its own digest and must be byte for byte in canonical form, so one changed byte in
any file is found. Digests find damage; only the signature (HMAC-SHA256, when a key is configured) proves
who made the bundle: TorchScript is code, so without a key trust the folder as you would trust a program.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stream.errors import BundleRefused
from stream.features.spec import Column, Domain
from stream.scoring.reference import REFERENCE_FILE, Reference, read_reference

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.ts"
TWIN_FILE = "model.pt2"
GOLDEN_FILE = "golden.npz"
REQUIRED_FILES = (MODEL_FILE, TWIN_FILE, GOLDEN_FILE)
GOLDEN_TOLERANCE = 1e-5
"""Largest difference from a golden output: absolute up to 1, relative above."""

_SEALS = ("digest", "signature")

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Output(_Part):
    """A named output of the model, (B,) float32."""

    name: Label
    kind: Literal["probability", "log_odds"]


class Calibration(_Part):
    """How the outputs were made probabilities. The model applies it itself; this is the record of it."""

    method: Literal["platt"]
    coefficients: dict[str, tuple[float, float]]
    """Output name -> (slope, intercept) applied to its raw log-odds."""
    events: int
    frauds: int


class Thresholds(_Part):
    """`probability >= review` is an alert; `>= decline` is declined. Rates are shares of validation events."""

    review: Probability
    decline: Probability
    alert_rate: Probability
    """What was asked for."""
    review_rate: Probability
    """What the review threshold gives on the validation period, declines included."""
    decline_rate: Probability

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.decline < self.review:
            raise ValueError("decline must not be below review")
        return self


class Band(_Part):
    """A score band: from `minimum` (a probability, inclusive) up to the next band's."""

    name: Label
    minimum: Probability


class Training(_Part):
    """Where the model comes from."""

    fingerprint: Sha256
    """Of the training data: see models.dataset.TrainingSet.fingerprint."""
    until_ms: int
    """No label that became known later took part."""
    label_delay_ms: int
    train_events: int
    train_frauds: int
    validation_events: int
    validation_frauds: int
    seed: int
    command: str
    options: dict[str, Any]
    versions: dict[str, str]


class Manifest(_Part):
    """Everything about a bundle except the weights."""

    format_version: Literal[1] = 1
    name: Label
    version: Label
    created_ms: int
    review_by_ms: int | None = None
    """By then somebody should have looked whether the model still serves; None: nobody said."""
    domain: str
    spec_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    spec: dict[str, Any]
    """The domain's canonical declaration, to say what differs when a spec_id does."""
    architecture: Label
    torch_version: str
    sequence_length: Annotated[int, Field(ge=1)]
    step_columns: tuple[str, ...]
    """The F columns of `steps` that the model reads, by name, in the model's order."""
    aggregate_columns: tuple[str, ...]
    """The D columns of `aggregates` that the model reads, by name, in the model's order."""
    outputs: tuple[Output, ...]
    calibration: Calibration
    thresholds: Thresholds
    bands: tuple[Band, ...]
    step_references: dict[str, float | None]
    """Column -> its usual value among genuine training events (None: usually missing). For attribution."""
    aggregate_references: dict[str, float | None]
    metrics: dict[str, float | None]
    training: Training
    files: dict[FileName, Sha256]
    signature: Sha256 | None = None
    digest: Sha256

    @property
    def label(self) -> str:
        """`name@version`, as score records name the model."""
        return f"{self.name}@{self.version}"

    @property
    def components(self) -> tuple[str, ...]:
        """The probabilities beside the main one."""
        return tuple(o.name for o in self.outputs if o.kind == "probability" and o.name != "probability")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = {output.name: output.kind for output in self.outputs}
        minimums = [band.minimum for band in self.bands]
        checks = {
            "files: model.ts, model.pt2 and golden.npz are required": set(REQUIRED_FILES) <= set(self.files),
            "files: the manifest cannot list itself": MANIFEST_FILE not in self.files,
            "outputs: names repeat": len(kinds) == len(self.outputs),
            "outputs: 'probability' is required": kinds.get("probability") == "probability",
            "outputs: 'log_odds' is required": kinds.get("log_odds") == "log_odds",
            "step_columns: at least one is required": len(self.step_columns) > 0,
            "aggregate_columns: at least one is required": len(self.aggregate_columns) > 0,
            "step_columns: names repeat": len(set(self.step_columns)) == len(self.step_columns),
            "aggregate_columns: names repeat": len(set(self.aggregate_columns)) == len(self.aggregate_columns),
            "step_references: one per step column": set(self.step_references) == set(self.step_columns),
            "aggregate_references: one per aggregate column": (
                set(self.aggregate_references) == set(self.aggregate_columns)
            ),
            "bands: the first starts at 0 and minimums do not fall": (
                minimums[:1] == [0.0] and minimums == sorted(minimums)
            ),
        }
        broken = [text for text, holds in checks.items() if not holds]
        if broken:
            raise ValueError("; ".join(broken))
        return self


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle that passed `verify`. Holds the very bytes that were checked, so a later swap on disk is harmless."""

    directory: Path
    manifest: Manifest
    program: bytes
    """The TorchScript archive."""
    reference: Reference | None = None
    """How scores and features were spread when the model was made; None when the bundle has no such file."""

    def step_index(self, domain: Domain) -> NDArray[np.int64] | None:
        """(F,) positions of the model's step columns in the domain's; None when they are the same in order."""
        return _positions(self.manifest.step_columns, domain.step_columns, "step")

    def aggregate_index(self, domain: Domain) -> NDArray[np.int64] | None:
        """(D,) positions of the model's aggregate columns in the domain's; None when the same in order."""
        return _positions(self.manifest.aggregate_columns, domain.aggregate_columns, "aggregate")


def verify(
    directory: Path,
    *,
    domain: Domain | None = None,
    expected_spec_id: str | None = None,
    signature_key: bytes | None = None,
    golden: bool = True,
) -> VerifiedBundle:
    """Checks a bundle and returns it; BundleRefused names the file or the check that failed.

    In this order: the folder holds the listed regular files and nothing else; the manifest's form, digest,
    and signature (when a key is given); every file's hash; `spec_id` and columns (when a domain or an id is
    given); with `golden`, the model runs and reproduces its golden outputs. Only the last step imports torch
    and runs the bundle's code. Blocks for file reads and, with `golden`, for one model call.
    """
    kept: dict[str, bytes] = {}
    with _Folder(directory) as folder:
        manifest = read_manifest(folder.read(MANIFEST_FILE), signature_key)
        _compare_names(folder.names, {MANIFEST_FILE, *manifest.files})
        for name, expected in sorted(manifest.files.items()):
            content = folder.read(name)
            if hashlib.sha256(content).hexdigest() != expected:
                raise BundleRefused(f"{name}: SHA-256 differs from the manifest; copy the bundle again")
            if name in (MODEL_FILE, GOLDEN_FILE, REFERENCE_FILE):
                kept[name] = content
    reference = read_reference(kept[REFERENCE_FILE]) if REFERENCE_FILE in kept else None
    bundle = VerifiedBundle(directory, manifest, kept[MODEL_FILE], reference)
    if expected_spec_id is not None:
        _compare_spec(manifest, expected_spec_id, None)
    if domain is not None:
        _compare_domain(bundle, domain)
    if golden:
        _check_golden(bundle, kept[GOLDEN_FILE])
    return bundle


def sign(directory: Path, signature_key: bytes) -> Manifest:
    """Signs the bundle in this folder, in place, and returns its new manifest. BundleRefused when a file is wrong."""
    manifest = verify(directory, golden=False).manifest
    content = seal(manifest.model_dump(mode="json"), signature_key)
    temporary = directory.with_name(f".{directory.name}.manifest")
    temporary.write_bytes(content)
    temporary.replace(directory / MANIFEST_FILE)
    return read_manifest(content, signature_key)


def read_manifest(content: bytes, signature_key: bytes | None = None) -> Manifest:
    """The manifest in these bytes, its form, digest and signature checked; BundleRefused."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleRefused(f"{MANIFEST_FILE}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise BundleRefused(f"{MANIFEST_FILE}: not a JSON object")
    # Canonical form: white space, duplicate keys and number spellings cannot differ unseen.
    if _render(fields) != content or fields.get("digest") != _digest(fields):
        raise BundleRefused(f"{MANIFEST_FILE}: changed after it was written (its digest does not hold)")
    if signature_key is not None:
        signature = fields.get("signature")
        if not isinstance(signature, str):
            raise BundleRefused("signature: a signature key is configured, but the bundle is not signed")
        if not hmac.compare_digest(signature.encode(), _sign(fields, signature_key).encode()):
            raise BundleRefused("signature: not made with the configured key")
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleRefused(f"{MANIFEST_FILE}: {place}: {first['msg']}") from None


def seal(fields: Mapping[str, Any], signature_key: bytes | None = None) -> bytes:
    """The bytes of a manifest file: canonical form, signed when a key is given, with its digest.

    `fields` are Manifest's without `signature` and `digest`, as plain JSON values.
    """
    body = {name: value for name, value in fields.items() if name not in _SEALS}
    body["signature"] = _sign(body, signature_key) if signature_key is not None else None
    body["digest"] = _digest(body)
    return _render(body)


def _render(fields: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except (ValueError, RecursionError) as error:
        raise BundleRefused(f"{MANIFEST_FILE}: {error}") from None


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render({name: value for name, value in fields.items() if name != "digest"})).hexdigest()


def _sign(fields: Mapping[str, Any], key: bytes) -> str:
    body = _render({name: value for name, value in fields.items() if name not in _SEALS})
    return hmac.new(key, body, hashlib.sha256).hexdigest()


class _Folder:
    """Reads files of one open folder: regular files only, no link followed, so no name can lead out of it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise BundleRefused(f"bundle folder {self._path}: {error.strerror}") from None
        self.names = frozenset(os.listdir(self._descriptor))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, name: str) -> bytes:
        try:
            # O_NONBLOCK: opening a named pipe must not hang the worker.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            raise BundleRefused(f"{name}: missing from the bundle") from None
        except OSError as error:
            raise BundleRefused(f"{name}: not a readable regular file ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleRefused(f"{name}: not a regular file")
        with open(descriptor, "rb") as file:
            return file.read()


def _compare_names(found: Iterable[str], listed: set[str]) -> None:
    extra = sorted(set(found) - listed)
    if extra:
        raise BundleRefused(f"{extra[0]}: in the folder but not in the manifest")
    missing = sorted(listed - set(found))
    if missing:
        raise BundleRefused(f"{missing[0]}: missing from the bundle")


def _compare_spec(manifest: Manifest, expected: str, canonical: dict[str, Any] | None) -> None:
    if manifest.spec_id == expected:
        return
    differing = ""
    if canonical is not None:
        names = sorted(n for n in {*canonical, *manifest.spec} if canonical.get(n) != manifest.spec.get(n))
        differing = f" (they differ in: {', '.join(names)})"
    raise BundleRefused(
        f"spec_id: trained for {manifest.spec_id}, this domain is {expected}{differing}; "
        "train a bundle for this domain or run the domain it was trained for"
    )


def _compare_domain(bundle: VerifiedBundle, domain: Domain) -> None:
    manifest = bundle.manifest
    _compare_spec(manifest, domain.spec_id, domain.canonical())
    bundle.step_index(domain)
    bundle.aggregate_index(domain)
    if manifest.sequence_length != domain.sequence_length:
        raise BundleRefused(
            f"sequence_length: the model reads {manifest.sequence_length} steps, "
            f"the domain keeps {domain.sequence_length}"
        )


def _positions(names: tuple[str, ...], columns: tuple[Column, ...], kind: str) -> NDArray[np.int64] | None:
    """Where the named columns are; None for all of them in order."""
    place = {column.name: position for position, column in enumerate(columns)}
    lacking = [name for name in names if name not in place]
    if lacking:
        raise BundleRefused(f"{kind} columns: the domain lacks {lacking}")
    index = np.array([place[name] for name in names], dtype=np.int64)
    return None if np.array_equal(index, np.arange(len(columns))) else index


def _check_golden(bundle: VerifiedBundle, content: bytes) -> None:
    from stream.scoring.torchscript import LoadedProgram, ProgramFailed  # noqa: PLC0415 (torch: only here)

    arrays = _read_golden(bundle.manifest, content)
    try:
        program = LoadedProgram(bundle.program)
        outputs = program.run(arrays["steps"], arrays["lengths"], arrays["aggregates"])
    except ProgramFailed as error:
        raise BundleRefused(f"{MODEL_FILE}: {error}") from None
    names = {output.name for output in bundle.manifest.outputs}
    if set(outputs) != names:
        raise BundleRefused(f"{MODEL_FILE}: gives the outputs {sorted(outputs)}, the manifest says {sorted(names)}")
    for name, got in outputs.items():
        expected = arrays[f"output.{name}"]
        if got.shape != expected.shape or not np.isfinite(got).all():
            raise BundleRefused(f"golden outputs: {name!r} has the wrong shape or is not finite")
        worst = float(np.max(np.abs(got - expected) / np.maximum(1.0, np.abs(expected))))
        # Written so that a NaN in the file is refused too.
        if not worst <= GOLDEN_TOLERANCE:
            raise BundleRefused(f"golden outputs: {name!r} differs by {worst:.2g}, allowed is {GOLDEN_TOLERANCE:g}")


def _read_golden(manifest: Manifest, content: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BundleRefused(f"{GOLDEN_FILE}: {error}") from None
    rows = len(arrays.get("lengths", ()))
    shapes: dict[str, tuple[int, ...]] = {
        "steps": (rows, manifest.sequence_length, len(manifest.step_columns)),
        "lengths": (rows,),
        "aggregates": (rows, len(manifest.aggregate_columns)),
    } | {f"output.{output.name}": (rows,) for output in manifest.outputs}
    found = {name: array.shape for name, array in arrays.items()}
    if rows == 0 or found != shapes:
        raise BundleRefused(f"{GOLDEN_FILE}: holds {found}, expected {shapes} with at least one row")
    return arrays


def nan_to_none(value: float) -> float | None:
    """A number as the manifest writes it: None for what is not finite."""
    return float(value) if math.isfinite(value) else None
