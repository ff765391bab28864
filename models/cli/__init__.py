"""Commands that need the `train` extra: train, evaluate, compare."""
