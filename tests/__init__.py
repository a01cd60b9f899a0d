"""Folders of tests mirror those of the product; the others are commands, `python -m tests.NAME`."""
