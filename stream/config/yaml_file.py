"""Reads the settings file. A module of its own, so that a start without a file does not pay for YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stream.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML would settle silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Mapping[Any, Any]:
    """The top level of the file. ConfigError when it cannot be read; its content is never quoted."""
    try:
        # The loader is a SafeLoader: it makes plain values only.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"settings file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"settings file {file} is not UTF-8") from error
    except yaml.YAMLError as error:
        # The whole text of the error would quote the file, which may hold passwords.
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"settings file {file}{where} is not valid YAML: {getattr(error, 'problem', '')}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"settings file {file}: write sections and fields, such as 'kafka:' and below it 'group: fraud'"
        )
    return content
