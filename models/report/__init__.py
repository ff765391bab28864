"""Reports: one JSON document, and a self-contained HTML page drawn from it."""
