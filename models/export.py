"""From a trained model to a bundle on disk: script, freeze, torch.export twin, golden vectors, manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.nets.scoring import output_kinds
from models.train import TrainedModel, plain_metrics, plain_options
from stream.clock import Clock
from stream.errors import ConfigError
from stream.features.spec import Domain
from stream.scoring import bundle
from stream.scoring.reference import REFERENCE_FILE
from stream.scoring.torchscript import LoadedProgram

Inputs = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]

_ABSURD = 1e30

REVIEW_AFTER_MS = 90 * 86_400_000
"""A model that nobody has looked at for a quarter is due."""


def export_bundle(
    trained: TrainedModel,
    domain: Domain,
    directory: Path,
    *,
    name: str,
    version: str,
    command: str,
    clock: Clock,
    review_by_ms: int | None = None,
    more_files: Mapping[str, bytes] | None = None,
    signature_key: bytes | None = None,
) -> bundle.Manifest:
    """Writes the bundle of `trained` as `directory`, which must not exist, and returns its manifest.

    The folder appears complete and verified, or not at all. `command` is the line that made it; `review_by_ms`
    is REVIEW_AFTER_MS from now unless given. `more_files`, such as the model card, are put beside. Blocks.
    ConfigError when the folder exists; BundleRefused when what was made does not verify.
    """
    inputs = golden_inputs(trained.samples)
    program = script(trained.net, inputs)
    files = {
        bundle.MODEL_FILE: program,
        bundle.TWIN_FILE: export_twin(trained.net, inputs),
        bundle.GOLDEN_FILE: golden_file(program, inputs),
        REFERENCE_FILE: trained.reference.content(),
        **(more_files or {}),
    }
    training = {
        "fingerprint": trained.dataset_fingerprint,
        "until_ms": trained.options.until_ms,
        "label_delay_ms": trained.options.label_delay_ms,
        "train_events": trained.train_events,
        "train_frauds": trained.train_frauds,
        "validation_events": trained.validation_events,
        "validation_frauds": trained.validation_frauds,
        "seed": trained.options.seed,
        "command": command,
        "options": plain_options(trained.options),
        "versions": versions(),
    }
    fields = {
        "format_version": 1,
        "name": name,
        "version": version,
        "created_ms": clock.now_ms(),
        "review_by_ms": clock.now_ms() + REVIEW_AFTER_MS if review_by_ms is None else review_by_ms,
        "domain": domain.name,
        "spec_id": domain.spec_id,
        "spec": domain.canonical(),
        "architecture": trained.options.net.architecture,
        "torch_version": torch.__version__,
        "sequence_length": domain.sequence_length,
        "step_columns": trained.step_columns,
        "aggregate_columns": trained.aggregate_columns,
        "outputs": [{"name": output, "kind": kind} for output, kind in output_kinds(trained.net.heads).items()],
        "calibration": trained.calibration.model_dump(),
        "thresholds": trained.thresholds.model_dump(),
        "bands": [band.model_dump() for band in trained.bands],
        "step_references": trained.step_references,
        "aggregate_references": trained.aggregate_references,
        "metrics": plain_metrics(trained.metrics),
        "training": training,
    }
    return write_bundle(directory, files, fields, domain=domain, signature_key=signature_key)


def write_bundle(
    directory: Path,
    files: Mapping[str, bytes],
    fields: Mapping[str, Any],
    *,
    domain: Domain,
    signature_key: bytes | None = None,
) -> bundle.Manifest:
    """Writes the files and, last, the manifest into a temporary folder, verifies it, and renames it to `directory`.

    `fields` are the manifest's without `files`, `signature` and `digest`.
    """
    if directory.exists() or directory.is_symlink():
        raise ConfigError(f"bundle folder {directory} exists already: choose another --out, or remove it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        for name, content in files.items():
            _write(temporary / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        _write(temporary / bundle.MANIFEST_FILE, bundle.seal({**fields, "files": hashes}, signature_key))
        verified = bundle.verify(temporary, domain=domain, signature_key=signature_key)
        temporary.chmod(0o755)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return verified.manifest


def script(net: nn.Module, inputs: Inputs) -> bytes:
    """The net as a frozen TorchScript archive, checked to give what the net gives to 1e-5."""
    net.eval()
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # deprecated since torch 2.11; the twin is for the day it goes
        frozen = torch.jit.freeze(torch.jit.script(net))
        buffer = io.BytesIO()
        torch.jit.save(frozen, buffer)
    expected = _run(net, inputs)
    for name, got in LoadedProgram(buffer.getvalue()).run(*inputs).items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-5, err_msg=f"TorchScript output {name!r}")
    return buffer.getvalue()


def export_twin(net: nn.Module, inputs: Inputs) -> bytes:
    """The net as a torch.export program with a free batch size."""
    net.eval()
    batch = torch.export.Dim("batch", min=1, max=1_000_000)
    shapes = {"steps": {0: batch}, "lengths": {0: batch}, "aggregates": {0: batch}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # notes of torch to its own developers
        program = torch.export.export(net, _tensors(inputs), dynamic_shapes=shapes)
        program.example_inputs = None  # golden.npz has them, without pickle
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return buffer.getvalue()


def golden_inputs(samples: Inputs) -> Inputs:
    """The samples, and the edges that real traffic meets seldom: length 1 and T, all missing, zeros, absurd values."""
    steps, lengths, aggregates = samples
    full = np.full_like(lengths[:1], steps.shape[1])
    cases = [(steps, lengths, aggregates), (steps[:2], np.ones_like(lengths[:2]), aggregates[:2])]
    for value in (np.nan, 0.0, _ABSURD, -_ABSURD):
        edge = np.full_like(steps[:1], value), full, np.full_like(aggregates[:1], value)
        cases += [edge, (edge[0], np.ones_like(full), edge[2]), (steps[:1], lengths[:1], edge[2])]
    return (
        np.concatenate([case[0] for case in cases]),
        np.concatenate([case[1] for case in cases]),
        np.concatenate([case[2] for case in cases]),
    )


def golden_file(program: bytes, inputs: Inputs) -> bytes:
    """The inputs and the program's outputs for them as an .npz without pickle."""
    outputs = LoadedProgram(program).run(*inputs)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"steps": inputs[0], "lengths": inputs[1], "aggregates": inputs[2]}
    arrays |= {f"output.{name}": values for name, values in outputs.items()}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _run(net: nn.Module, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
    with torch.inference_mode():
        outputs: dict[str, Tensor] = net(*_tensors(inputs))
    return {name: values.numpy() for name, values in outputs.items()}


def _tensors(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    steps, lengths, aggregates = inputs
    return torch.from_numpy(steps), torch.from_numpy(lengths), torch.from_numpy(aggregates)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def versions() -> dict[str, str]:
    """Of everything that a model's figures may depend on."""
    found = {"python": platform.python_version()}
    for package in ("riskstream", "torch", "numpy", "scikit-learn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
