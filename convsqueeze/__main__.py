"""`python -m convsqueeze`: the command line."""

from convsqueeze.cli.main import main

main()
