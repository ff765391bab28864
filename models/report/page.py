"""Turns a report's document into one HTML file that needs no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from models.report.plots import bars, plots

MAIN_FIGURES = {
    "average_precision": "average precision",
    "auc": "AUC",
    "card_precision_100": "card precision at 100 a day",
    "recall_at_fpr_0_1pct": "recall at 0.1 % false positives",
    "recall_at_fpr_1pct": "recall at 1 % false positives",
    "recall_at_100_alerts": "recall at 100 alerts a day",
    "money_recall_at_review": "money recall at review",
    "ece": "calibration error",
}
THRESHOLD_FIGURES = ("recall", "precision", "f1", "accuracy", "alert_rate", "money_recall")
SEGMENT_FIGURES = {
    "events": "events",
    "frauds": "frauds",
    "fraud_rate": "fraud rate",
    "mean_probability": "mean probability",
    "average_precision": "average precision",
    "auc": "AUC",
    "recall_at_review": "recall at review",
    "precision_at_review": "precision at review",
    "alert_rate": "alert rate",
}
_SHOWN_IMPORTANCES = 20


def render(document: Mapping[str, Any]) -> str:
    """The page of a report's document (see `docs/evaluation.md`)."""
    environment = Environment(
        loader=PackageLoader("models.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["percent"] = _percent
    importance = document.get("importance")
    drawn = {} if importance is None else {
        "groups": Markup(bars(importance["groups"], "average precision lost")),  # our own SVG
        "columns": Markup(bars(_first(importance["columns"]), "average precision lost")),
    }  # fmt: skip
    return environment.get_template("page.html.j2").render(
        document=document,
        plots={title: Markup(svg) for title, svg in plots(document["models"]).items()},
        importance=drawn,
        main_figures=MAIN_FIGURES,
        threshold_figures=THRESHOLD_FIGURES,
        segment_figures=SEGMENT_FIGURES,
    )


def write(document: Mapping[str, Any], page: Path) -> Path:
    """Writes the page, and beside it the document as .json, whose path is returned. Blocks."""
    beside = page.with_suffix(".json")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(document), encoding="utf-8")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return beside


def _first(values: Mapping[str, float]) -> dict[str, float]:
    return dict(list(values.items())[:_SHOWN_IMPORTANCES])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
