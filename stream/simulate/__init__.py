"""Simulated card payments: a population with habits, fraud scenarios, labels that arrive late, live traffic.

`population` is who pays whom, `scenarios` are the frauds, `simulation` puts them on one timeline,
`live` plays that timeline as traffic. numpy alone; everything follows from the seed.
"""
