"""`python -m tests.benchmarks [SUBJECT ...]`, all of them by default; exit 1 if a claim fails."""

import argparse
import sys
from importlib import import_module

from rich.console import Console

SUBJECTS = ("borders", "verification")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=25, help="times that each way is run")
    parser.add_argument("--threads", type=int, default=1, help="threads of either runtime")
    parser.add_argument("--size", type=int, default=256, help="samples on each side of the image")
    options = parser.parse_args()
    if unknown := [name for name in options.subjects if name not in SUBJECTS]:
        parser.error(f"unknown subjects: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    console = Console(width=170)
    broken: list[str] = []
    for name in options.subjects or SUBJECTS:
        subject = import_module(f"tests.benchmarks.{name}")
        console.print(f"[bold]{name}[/]: {subject.TITLE}")
        broken += subject.run(console, options)
    for claim in broken:
        console.print(f"[red]not held[/]: {claim}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
