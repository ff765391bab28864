"""What can be said of requirements.lock and of the image's locks without a network, for `make check`.

Every package is pinned and hashed, comes from the package index by its name and from nowhere else, and is not on
the list of refused versions; everything that pyproject.toml asks for is there, in a version that it allows.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def problems(lock: str, project: str | None, refused: str) -> Iterator[str]:
    """A sentence for each thing that is wrong, by the texts of the files; a part of a lock has no project."""
    pinned: dict[str, list[Version]] = {}
    for line in lock.replace("\\\n", " ").splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        words = text.split(" --hash=")[0].strip()
        if text.startswith("-"):
            yield f"{text.split('=')[0].split()[0]} stands in the lock: an option may lead elsewhere than to the index"
            continue
        found = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)\s*(?:;.*)?", words)
        if found is None:
            yield f"{words!r} is not pinned as NAME==VERSION"
            continue
        hashes = text.count("--hash=")
        if not hashes or hashes != len(_HASH.findall(text)):
            yield f"{found[1]} has no hash, or one that is not SHA-256"
        pinned.setdefault(canonicalize_name(found[1]), []).append(Version(found[2]))
    if project is not None:
        yield from _missing(pinned, project)
    for line in refused.splitlines():
        name, version, reason = [*line.split("#")[0].split(maxsplit=2), "", "", ""][:3]
        if name and Version(version) in pinned.get(canonicalize_name(name), []):
            yield f"{name} {version} is refused: {reason}"


def _missing(pinned: dict[str, list[Version]], project: str) -> Iterator[str]:
    """What the project asks for and the lock does not give."""
    table = tomllib.loads(project)["project"]
    extras = table.get("optional-dependencies", {}).values()
    for text in [*table["dependencies"], *(each for extra in extras for each in extra)]:
        wanted = Requirement(text)
        if wanted.url is not None:
            yield f"{wanted.name} comes from a URL"
        versions = pinned.get(canonicalize_name(wanted.name), [])
        if not any(wanted.specifier.contains(version, prereleases=True) for version in versions):
            yield f"{text} is not in the lock: make lock"


def main() -> int:
    """0 if nothing is wrong."""
    files = (ROOT / "requirements.lock", ROOT / "pyproject.toml", ROOT / ".ci" / "refused-versions.txt")
    lock, project, refused = (file.read_text(encoding="utf-8") for file in files)
    found = [f"requirements.lock: {problem}" for problem in problems(lock, project, refused)]
    for file in sorted((ROOT / "deploy" / "locks").glob("*.lock")):
        found += [f"{file.name}: {problem}" for problem in problems(file.read_text(encoding="utf-8"), None, refused)]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
