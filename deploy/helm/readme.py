"""Writes deploy/helm/riskstream/README.md from values.yaml: each value, its default, and the comment above it.

`python deploy/helm/readme.py` writes it, with `--check` it exits 1 when the file is not current.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "riskstream"
_KEY = re.compile(r"^( *)([A-Za-z]+):")

_TEXT = """\
# riskstream: the Helm chart

One release is one consumer group of workers: a StatefulSet, because a worker's id is its slot, stable over restarts;
its transactional id hangs on it. Made from `values.yaml` by `python deploy/helm/readme.py`.

```
kubectl create secret generic riskstream-redis --from-literal=url=rediss://... --from-literal=key-secret=...
helm install fraud deploy/helm/riskstream \\
  --set kafka.bootstrapServers=broker:9092 --set redis.existingSecret=riskstream-redis
helm test fraud
```

- The topics are not made by the chart: `riskstream topics create --replication-factor 3`, or by those who own Kafka.
- No secret stands in the values: they name secrets that exist, and `values.schema.json` refuses the settings that
  would hold one.
- A worker is ready when all its partitions are restored. So an upgrade waits for each worker before it takes the next.
- More workers than partitions are refused: the others would be idle, and never ready.
- [docs/operations.md](../../../docs/operations.md): upgrades, rehearsals, and what to do when it rings.
- `make deploy-check` runs `helm lint`, `helm template` with the files in `ci/`, and kubeconform in strict mode.

## Values

| value | default | meaning |
| --- | --- | --- |
"""


def described(text: str) -> list[tuple[str, Any, str]]:
    """(dotted name, default, comment) of every value that has a comment, and of every one without values below it."""
    defaults = yaml.safe_load(text)
    found: list[tuple[str, Any, str]] = []
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip("# "))
        elif match := _KEY.match(line):
            indent = len(match[1])
            path = [*(part for part in path if part[0] < indent), (indent, match[2])]
            names = [name for _, name in path]
            value = defaults
            for name in names:
                value = value[name]
            is_section = isinstance(value, dict) and value and line.rstrip().endswith(":")
            if comment or not is_section:
                found.append((".".join(names), None if is_section else value, " ".join(comment)))
            comment = []
        else:
            comment = []
    return [(name, value, text) for name, value, text in found if value is not None or text]


def page(text: str) -> str:
    rows = []
    for name, value, comment in described(text):
        default = "" if value is None else f"`{json.dumps(value)}`"
        rows.append(f"| `{name}` | {default} | {comment} |".replace("|  |", "| |"))
    return _TEXT + "\n".join(rows) + "\n"


def main() -> int:
    wanted = page((CHART / "values.yaml").read_text(encoding="utf-8"))
    readme = CHART / "README.md"
    if "--check" not in sys.argv:
        readme.write_text(wanted, encoding="utf-8")
    elif not readme.exists() or readme.read_text(encoding="utf-8") != wanted:
        print("deploy/helm/riskstream/README.md is not current: python deploy/helm/readme.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
