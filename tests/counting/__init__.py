"""What one run of convsqueeze does inside, counted: `python -m tests.counting [COMMAND ...]`.

`tables` holds what is counted, the commands, what they did before and what they may do; `counter`
counts. A command runs in a process of its own, so that imports count for each alike.
"""
