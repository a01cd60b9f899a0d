"""Files as strangers may write them, and what the program makes of each: an error of its own or an
honest result, never another exception, a crash, a hang or a large allocation.

`python -m tests.fuzz [--minutes M] [--seed N] [--target NAME]` searches; `tests/fuzz/test_fuzz.py`
is a short run of the same. An example is a sequence of choices (`choices`) from which a target
(`targets`) makes files; `search` alters the sequences that reached new lines of the program, and
shortens those that found something; `isolation` runs each example in a process of its own.
"""
