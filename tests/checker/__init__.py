"""The independent checker: it imports nothing from stream or models (tests/architecture/test_checker.py)."""
