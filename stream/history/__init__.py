"""A user's own history file, read through a mapping that the user writes, as events of our contract.

`batch` holds events in columns, `mapping` the YAML that says which column is what, `convert` turns
columns into checked values, `reader` streams a file. Only `convert` and `reader` import pyarrow.
"""
