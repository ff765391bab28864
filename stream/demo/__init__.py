"""`riskstream demo`: the whole engine on one machine, from nothing, with simulated payments.

`plan` decides what is simulated and writes the settings, `children` are the processes, `model` trains once
and remembers, `watch` reads the outputs and counts, `view` shows, `runner` is the order of it all.
"""
