"""Queries that several dashboards share."""

from __future__ import annotations

from deploy.grafana.panels import Variable

WORKER = Variable("worker", "worker", "label_values(riskstream_events_in_total, instance)", many=True)

MINE = 'instance=~"$worker"'


def percentile(quantile: float, metric: str, by: str = "le", where: str = MINE) -> str:
    return f"histogram_quantile({quantile}, sum by ({by}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"


def rate_of(metric: str, by: str = "", where: str = MINE) -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}[$__rate_interval]))"


SCORED = 'sum(rate(riskstream_events_total{outcome="scored"}[$__rate_interval]))'


DUPLICATE, LATE, SCORED_HERE = (
    f"{MINE}, {which}" for which in ('outcome="duplicate"', 'flag="late"', 'outcome="scored"')
)
