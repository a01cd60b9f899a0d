"""Benchmarks, as ratios taken in one run: `python -m tests.benchmarks [SUBJECT ...]`.

A subject is a module here with `TITLE` and `run(console, options)`, which measures, prints, and
returns the claims that did not hold.
"""
