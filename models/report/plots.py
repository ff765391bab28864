"""The report's plots as SVG text, to stand inside the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1f5fbf", "#d1602b", "#2f8f5b", "#7a55b5", "#777777")
Models = Mapping[str, Mapping[str, Any]]


def plots(models: Models) -> dict[str, str]:
    """Title -> SVG of each plot of these models."""
    drawn = {
        "Precision and recall": _svg(lambda axes: _precision_recall(axes, models)),
        "ROC": _svg(lambda axes: _roc(axes, models)),
        "Stated and observed probability": _svg(lambda axes: _reliability(axes, models)),
    }
    if len(next(iter(models.values()))["folds"]) > 1:
        drawn["Average precision by fold"] = _svg(lambda axes: _folds(axes, models))
    return drawn


def bars(values: Mapping[str, float], title: str) -> str:
    """Horizontal bars, the first on top, as SVG."""
    return _svg(lambda axes: _bars(axes, values, title), height=0.6 + 0.24 * len(values))


def _precision_recall(axes: Axes, models: Models) -> None:
    for colour, (name, model) in zip(COLOURS, models.items(), strict=False):
        recall, precision = zip(*model["curves"]["precision_recall"], strict=True)
        axes.plot(recall, precision, color=colour, label=name, linewidth=1.6)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
    axes.legend(loc="lower left", frameon=False)


def _roc(axes: Axes, models: Models) -> None:
    for colour, (name, model) in zip(COLOURS, models.items(), strict=False):
        points = [(max(x, 1e-5), y) for x, y in model["curves"]["roc"]]
        axes.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.6)
    # Linear, the part below one percent where decisions are made would be a line on the left edge.
    axes.set_xscale("log")
    axes.set(xlabel="false-positive rate", ylabel="recall", xlim=(1e-5, 1), ylim=(0, 1.03))
    axes.legend(loc="lower right", frameon=False)


def _reliability(axes: Axes, models: Models) -> None:
    lowest = 1e-5
    axes.plot([lowest, 1], [lowest, 1], color="#bbbbbb", linewidth=1)
    for colour, (name, model) in zip(COLOURS, models.items(), strict=False):
        points = [(max(bin_["stated"], lowest), max(bin_["observed"], lowest)) for bin_ in model["reliability"]]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5, label=name, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="stated probability", ylabel="observed rate", xlim=(lowest, 1.3), ylim=(lowest, 1.3))
    axes.legend(loc="upper left", frameon=False)


def _folds(axes: Axes, models: Models) -> None:
    for colour, (name, model) in zip(COLOURS, models.items(), strict=False):
        values = [fold["average_precision"] for fold in model["folds"]]
        axes.plot(range(1, len(values) + 1), values, color=colour, marker="o", markersize=4, label=name)
    count = len(next(iter(models.values()))["folds"])
    axes.set(xlabel="fold", ylabel="average precision", ylim=(0, 1.03), xticks=range(1, count + 1))
    axes.legend(loc="lower left", frameon=False)


def _bars(axes: Axes, values: Mapping[str, float], title: str) -> None:
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color=COLOURS[0], height=0.7)
    axes.set_xlabel(title)
    axes.margins(y=0.01)


def _svg(draw: Callable[[Axes], None], height: float = 3.4) -> str:
    """Text stays text, so that the page is small and can be searched."""
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(4.9, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        buffer = io.StringIO()
        # No date: the same figures give the same page.
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    without_prologue = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)
    return re.sub(r"<metadata>.*?</metadata>", "", without_prologue, flags=re.DOTALL)
