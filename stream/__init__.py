"""riskstream: the streaming risk scoring engine. Start at app.py, the only composition root."""

__version__ = "0.1.0"
