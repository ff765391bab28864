"""The short form of `make bench-check`: a gross regression of the hot path fails CI, whatever the machine's day."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import check, report
from bench.cases import inside
from bench.job import Job
from stream.stack import RedisServer
from tests.conftest import require

_GENEROUS = 0.6
"""CI shares its cores: ratios are steadier than times, but not steady."""


@pytest.mark.redis
@pytest.mark.slow
def test_the_engine_keeps_its_ratio_to_the_bare_model(tmp_path: Path) -> None:
    require(RedisServer)
    found = report.ratios({"inside": inside.run(Job(tmp_path), quick=True)})
    rows = check.compare(check.committed_ratios(check.COMMITTED), found, _GENEROUS)
    assert [name for name, *_ in rows] == ["inside_to_model"]
    assert [row for row in rows if row[-1] == "WORSE"] == []
