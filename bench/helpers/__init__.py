"""Processes beside the measured one: the open-loop load, and the reader that takes the times."""
