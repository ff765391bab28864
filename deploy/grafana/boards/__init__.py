"""The four dashboards. Every panel says what bad looks like; what to do about it stands in docs/runbooks."""

from deploy.grafana.boards import data, engine, model, overview

BOARDS = {"overview": overview.BOARD, "engine": engine.BOARD, "model": model.BOARD, "data": data.BOARD}
"""File name -> dashboard."""
