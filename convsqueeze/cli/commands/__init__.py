"""A command each: options in, a report out, the exit status that the outcome has.

Imports typer and what takes no time; each command imports what it needs before its work begins.
"""
