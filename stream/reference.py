"""Writes the tables of docs/*.md that the code decides: settings, metrics, exit codes, topics, flags, operators.

A table stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`. `python -m stream.reference` writes
them, `python -m stream.reference --check` exits 1 when one is not current.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from stream import errors, rights
from stream.config import ENV_PREFIX, Settings, load_settings
from stream.events import records, rejects
from stream.features import operators
from stream.metrics import Metrics
from stream.quality.metrics import QualityMetrics
from stream.topics import plan_topics

DOCS = Path(__file__).resolve().parent.parent / "docs"

_OF_EVERY_OPERATOR = ("name", "group", "log")
_SUFFIXES = {"counter": "_total", "info": "_info"}


class MetricFacts(NamedTuple):
    """One metric as Prometheus sees it; a histogram has `_bucket`, `_sum` and `_count` behind its name."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def metric_facts() -> list[MetricFacts]:
    """Every metric of the workers, then of `riskstream quality`, in the order of declaration."""
    found = []
    collectors = [*vars(Metrics(CollectorRegistry())).values(), QualityMetrics(CollectorRegistry())]
    for collector in collectors:
        if not hasattr(collector, "describe"):
            continue
        for family in collector.describe():
            name = family.name + _SUFFIXES.get(family.type, "")
            # The names of a metric's labels have no public accessor.
            labels = tuple(getattr(family, "_labelnames", getattr(collector, "_labelnames", ())))
            found.append(MetricFacts(name, family.type, labels, family.documentation))
    return found


def exit_codes() -> list[tuple[int, str, str]]:
    """(code, class, what happened) of every error that has a code of its own, in order of the codes."""
    kinds = [errors.RiskstreamError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())  # the list grows while it is read: the whole tree, once
    own = [kind for kind in kinds if "exit_code" in vars(kind) and kind.__module__ == errors.__name__]
    return sorted((kind.exit_code, kind.__name__, _docstring(kind)) for kind in own)


def documented_members(module: Any, name: str) -> list[tuple[str, str]]:
    """(value, docstring below it) of every member of an enum of texts, read from its source."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = []
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            found.append((str(node.value.value), str(text)))
    return found


def _settings() -> Iterator[str]:
    section = None
    for setting in load_settings(None, {}, {}).describe():
        head, dot, _ = setting.field.rpartition(".")
        if head != section:
            section = head
            yield f"\n#### {section}\n" if dot else ""
            yield from _head("setting", "default", "allowed", "meaning")
        variable = ENV_PREFIX + setting.field.replace(".", "__").upper()
        default = f"`{setting.value}`" if setting.value else "nothing"
        yield _row(f"`{setting.field}`<br>`{variable}`", default, setting.allowed, setting.description)


def _metrics() -> Iterator[str]:
    yield from _head("metric", "type", "labels", "meaning, and what to do")
    for name, kind, labels, text in metric_facts():
        yield _row(f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels) or "none", text)


def _exit_codes() -> Iterator[str]:
    yield from _head("code", "error", "what happened")
    for code, name, text in exit_codes():
        yield _row(str(code), f"`{name}`", text)


def _topics() -> Iterator[str]:
    plans = plan_topics(Settings(), replication_factor=3)
    names = list(plans[0].config)
    yield from _head("topic", *(f"`{name}`" for name in names))
    for plan in plans:
        yield _row(f"`{plan.name}`", *(plan.config[name] for name in names))


def _rights() -> Iterator[str]:
    settings = Settings()
    yield from _head("role", "resource", "operation", "names, with default settings")
    for role in rights.Role:
        together: dict[tuple[str, str], list[str]] = {}
        for right in rights.kafka_rights(settings, role):
            name = f"`{right.name}`" + (" and what begins so" if right.prefixed else "")
            together.setdefault((right.resource, right.operation), []).append(name)
        for (resource, operation), names in together.items():
            yield _row(role, resource, operation, ", ".join(names))
    yield ""
    yield from _head("Redis command", "what for")
    for name, use in (*rights.REDIS_COMMANDS, *rights.REDIS_OPTIONAL):
        yield _row(f"`{name}`", use)


def _flags() -> Iterator[str]:
    yield from _head("flag", "meaning")
    for value, text in documented_members(records, "Flag"):
        yield _row(f"`{value}`", text)


def _dead_letters() -> Iterator[str]:
    yield from _head("stage", "meaning")
    for value, text in documented_members(rejects, "Stage"):
        yield _row(f"`{value}`", text)
    yield ""
    yield "Codes: " + ", ".join(f"`{code}`" for code in rejects.RejectCode) + "."


def _operators() -> Iterator[str]:
    yield from _head("operator", "arguments of its own", "value")
    for name in operators.__all__:
        kind = getattr(operators, name)
        if dataclasses.is_dataclass(kind):
            fields = [f for f in dataclasses.fields(kind) if f.name not in _OF_EVERY_OPERATOR]
            own = ", ".join(f"`{f.name}`" for f in fields) or "none"
            yield _row(f"`{name}`", own, " ".join((kind.__doc__ or "").split()))


TABLES: Mapping[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "settings": ("operations.md", _settings),
    "metrics": ("operations.md", _metrics),
    "exit codes": ("operations.md", _exit_codes),
    "topics": ("operations.md", _topics),
    "rights": ("security.md", _rights),
    "flags": ("guarantees.md", _flags),
    "dead letters": ("guarantees.md", _dead_letters),
    "operators": ("domains.md", _operators),
}
"""Name -> the document that holds the table, and its lines."""


def rendered(text: str, document: str) -> str:
    """The document's text with its tables anew. ValueError when the marks of one are missing."""
    for name, (place, lines) in TABLES.items():
        if place == document:
            start, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->"
            before, found, rest = text.partition(start)
            _, closed, after = rest.partition(end)
            if not (found and closed):
                raise ValueError(f"{document}: the marks {start.strip()} and {end} are missing")
            text = before + start + "\n" + "\n".join(lines()).strip("\n") + "\n\n" + end + after
    return text


def outdated(folder: Path) -> list[str]:
    """The documents whose tables are not current."""
    documents = dict.fromkeys(place for place, _ in TABLES.values())
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in documents}
    return [name for name, text in texts.items() if rendered(text, name) != text]


def _head(*titles: str) -> list[str]:
    return [_row(*titles), _row(*["---"] * len(titles))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _docstring(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the tables; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stream.reference", description="Writes the tables of the docs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is not current")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the documents (default: the repository's docs)")
    options = parser.parse_args(arguments)
    stale = outdated(options.docs)
    for name in stale:
        if options.check:
            print(f"{name}: not current; run `python -m stream.reference`", file=sys.stderr)
        else:
            path = options.docs / name
            path.write_text(rendered(path.read_text(encoding="utf-8"), name), encoding="utf-8")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
