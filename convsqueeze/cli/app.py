"""The command line: its name, its own options and its commands. Imports nothing that takes time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from convsqueeze.cli.commands.export_onnx import export_onnx
from convsqueeze.cli.commands.inspect import inspect
from convsqueeze.cli.commands.merge import merge
from convsqueeze.cli.commands.plan import plan
from convsqueeze.cli.commands.scan import scan
from convsqueeze.cli.commands.schema import schema
from convsqueeze.cli.commands.verify import verify
from convsqueeze.cli.run import as_run
from convsqueeze.errors import printable


class _Commands(TyperGroup):
    """Whose usage errors repeat no more of what was given than can be read."""

    def make_context(self, *given: Any, **more: Any) -> Any:
        with _told_in_part():
            return super().make_context(*given, **more)

    def invoke(self, ctx: Any) -> Any:
        with _told_in_part():
            return super().invoke(ctx)


@contextmanager
def _told_in_part() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = getattr(error, "message", None)
        if hasattr(error, "format_message") and isinstance(said, str):
            setattr(error, "message", "\n".join(map(printable, said.split("\n"))))  # noqa: B010
        raise


app = typer.Typer(
    cls=_Commands,
    name="convsqueeze",
    help="Merge trained convolutions that follow each other into one, exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"convsqueeze {version('convsqueeze')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


for command in (merge, scan, plan, verify, export_onnx, inspect, schema):
    app.command()(as_run(command))
