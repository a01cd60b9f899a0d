"""`schema`: the manifest's JSON Schema."""

from convsqueeze.cli.signals import importing


def schema() -> None:
    """Print the manifest's JSON Schema, for editors that check YAML."""
    with importing():
        from convsqueeze.cli.output import print_json
        from convsqueeze.manifest import json_schema
    print_json(json_schema())
