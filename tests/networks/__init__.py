"""Published networks as plain modules with the names of their state dicts, and what merging them
does: `python -m tests.networks` prints the table.
"""
