"""Folders of bundles: the library that all workers read, and the link that one worker follows."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from stream.errors import ConfigError
from stream.rollout.records import Place

_FORMER = ".former"


def add(library: Path, bundle: Path, place: Place) -> Path:
    """Copies a verified bundle into the library; a bundle that is there already stays. Returns its folder.

    It appears whole: copied beside its place, then renamed. ConfigError when the library cannot be written.
    """
    target = library / place.folder
    if target.is_dir():
        return target
    temporary = library / f".{place.folder}.{secrets.token_hex(4)}"
    try:
        shutil.copytree(bundle, temporary)
        os.replace(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.is_dir():  # somebody else has just added it
            return target
        raise ConfigError(f"scoring.library {library}: cannot be written ({error.strerror})") from None
    return target


def point(link: Path, bundle: Path) -> Path | None:
    """Makes the symlink `link` lead to `bundle`, in one step; returns where it led before. ConfigError."""
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link}: is no symlink; a worker follows scoring.bundle best when that is one")
    former = former_of(link, current=True)
    if former is not None and former != bundle.resolve():
        _replace(_remembered(link), former)
    _replace(link, bundle.resolve())
    return former


def former_of(link: Path, *, current: bool = False) -> Path | None:
    """Where the link led before its last change (with `current`: where it leads now); None when nowhere."""
    place = link if current else _remembered(link)
    return place.resolve() if place.is_symlink() else None


def _remembered(link: Path) -> Path:
    return link.with_name(link.name + _FORMER)


def _replace(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    try:
        temporary.symlink_to(target, target_is_directory=True)
        os.replace(temporary, link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{link}: cannot be changed ({error.strerror})") from None
