"""Online quality: labels join the scores, corrected for labels that cannot have arrived; drift from the reference.

Beside the engine, not inside it (ADR 0020): it reads the score and label topics, and no row, no Redis.
"""
