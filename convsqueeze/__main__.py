"""`python -m convsqueeze`: the command line."""

from convsqueeze.cli.app import main

main()
