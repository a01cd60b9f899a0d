"""`python -m convsqueeze`: the command line."""

from convsqueeze.cli.main import process

process()
