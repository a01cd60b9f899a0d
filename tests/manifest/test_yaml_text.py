"""What YAML text comes to: YAML 1.2's core schema, lines, and refusals in words."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.main import CParser

from convsqueeze.errors import ManifestError
from convsqueeze.manifest import load_manifest, manifest_from_data, parse_manifest
from convsqueeze.manifest.yaml_text import MOST_REPEATED, read_yaml

pytestmark = pytest.mark.quick


def in_pair(value: str, key: str = "padding") -> str:
    return f"version: 1\npairs:\n  - {{first: {{name: a, {key}: {value}}}, second: {{name: b}}}}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("-3", -3), ("+3", 3), ("010", 10), ("0o10", 8), ("0x1F", 31)),
        *(("1e-5", 1e-5), ("1.0e-5", 1e-5), ("-.5", -0.5), ("1.", 1.0), ("1E2", 100.0)),
        *((".inf", float("inf")), ("-.Inf", float("-inf")), ("1e400", float("inf"))),
        *(("true", True), ("False", False), ("null", None), ("~", None), ("", None)),
        *(("yes", "yes"), ("no", "no"), ("on", "on"), ("1_0", "1_0"), ("0b1", "0b1")),
        *(("2024-01-01", "2024-01-01"), ("2024-99-01", "2024-99-01"), ("1.2.3", "1.2.3")),
        *(("'1'", "1"), ('"true"', "true"), ("|\n  1\n", "1\n"), ("'\\x'", "\\x")),
    ],
)
def test_scalar(text: str, value: Any) -> None:
    (key,), (read,) = zip(*read_yaml(f"a: {text}")[0].items(), strict=True)
    assert (key, read, type(read)) == ("a", value, type(value))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (in_pair("!x [1]"), "p.yaml:3 pairs[0].first.padding: has the tag !x, plain"),
        (in_pair("!!set {1}"), "pairs[0].first.padding: has the tag !!set, plain"),
        (in_pair("!!int 1"), "pairs[0].first.padding: has the tag !!int, plain"),
        (in_pair("!!int x"), "pairs[0].first.padding: has the tag !!int, plain"),
        (in_pair("!!binary aGk=", "into"), "pairs[0].first.into: has the tag !!binary, plain"),
        (in_pair("!!timestamp x"), "pairs[0].first.padding: has the tag !!timestamp, plain"),
        (in_pair("!!python/object:os.system x"), "has the tag !!python/object:os.system, plain"),
        ("!!omap [version: 1]", "p.yaml: has the tag !!omap, plain"),
        ("- !x [1]", "p.yaml:1 [0]: has the tag !x, plain"),
        (in_pair("9" * 5000), "pairs[0].first.padding: is a number of 5,000 digits, no layer"),
        (in_pair("9" * 40), "pairs[0].first.padding: is a number of 133 bits, no layer"),
        (in_pair("0x" + "f" * 5000), "pairs[0].first.padding: is a number of 20000 bits"),
        (in_pair("1e400"), "pairs[0].first.padding: is inf, a finite number was needed"),
        (in_pair("{[1]: 2}"), "p.yaml:3: not valid YAML, column 33: found a key that is no name."),
        (in_pair("{1: 2}"), "pairs[0].first.padding: has the key 1, a name was needed"),
        (in_pair("1, padding: 2"), "p.yaml:3: not valid YAML, column 35: found the key padding tw"),
        (
            in_pair("{<<: 1, <<: [1]}"),
            "p.yaml:3: not valid YAML, column 32: found << with what ",
        ),
        (in_pair("*none"), "p.yaml:3: not valid YAML, column 32: found undefined alias 'none'."),
        ("version: 1\npairs: &all [*all]\n", "p.yaml:2: not valid YAML, column 14: found undef"),
        ("version: 1\npairs: []\n---\na: 1", "p.yaml:3: not valid YAML, column 1: but found anot"),
        ("version: 1\npairs:\n" + "- " * 5000, "p.yaml:3: not valid YAML, column 199: nested too"),
        ("version: 1\npairs: " + "[" * 5000, "p.yaml:2: not valid YAML, column 107: nested too d"),
        ("version: 1\npairs: \0", "p.yaml: not valid YAML: unacceptable character"),
        ("version: 1\npairs: \ud800", "p.yaml: not valid YAML: "),
        ("[1, 2", "p.yaml:2: not valid YAML, column 1: did not find expected ',' or ']'."),
        ("abc", "p.yaml: is 'abc'. A manifest was needed"),
        ("# nothing", "p.yaml: is empty. A manifest was needed"),
    ],
)
def test_refused_with_place_and_reason(text: str, says: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parse_manifest(text, "p.yaml")
    assert says in str(refused.value)
    assert len(refused.value.problems) == 1


def test_aliases_and_merge_keys_repeat_what_they_name() -> None:
    layer = "&a {name: a, padding: 1}"
    text = f"version: 1\npairs:\n- first: {layer}\n  second:\n    <<: *a\n    name: b\n"
    read = parse_manifest(text, "p.yaml")
    expected = {"first": {"name": "a", "padding": 1}, "second": {"name": "b", "padding": 1}}
    assert read.to_data()["pairs"] == [expected]
    assert read.where(0, ("second", "name")) == "p.yaml:6 pairs[0].second.name"
    assert read.where(0, ("second", "padding")) == "p.yaml:3 pairs[0].second.padding"


def test_earlier_merge_keys_and_the_mappings_own_keys_come_first() -> None:
    text = "- &x {a: 1, b: 1}\n- &y {b: 2, c: 2}\n- {<<: [*x, *y], c: 3}\n"
    assert read_yaml(text)[0][2] == {"a": 1, "b": 1, "c": 3}


@pytest.mark.parametrize("merging", [True, False])
def test_what_repeats_without_end_is_refused(merging: bool) -> None:
    wide = ", ".join(f"k{i}: 1" for i in range(1000))
    count = MOST_REPEATED // 1000 + 3
    repeated = "".join("- {<<: *wide}\n" if merging else "- *wide\n" for _ in range(count))
    text = f"wide: &wide {{{wide}}}\nversion: 1\npairs:\n{repeated}"
    with pytest.raises(ManifestError, match=r"repeat too many keys|stands for more than 100,000"):
        parse_manifest(text, "p.yaml")


def test_data_that_holds_itself_is_refused() -> None:
    pairs: list[Any] = []
    pairs.append(pairs)
    with pytest.raises(ManifestError, match=r"manifest: is nested too deeply, or holds itself\."):
        manifest_from_data({"version": 1, "pairs": pairs})


def test_libyaml_is_what_reads() -> None:
    """Else a long manifest takes a minute."""
    assert CParser is not None
    assert YAML(typ="safe").Parser is CParser


def test_twenty_thousand_entries_are_read_in_seconds(tmp_path: Path) -> None:
    """They were refused, for aliases that they have not; and JSON of them for its length."""
    pairs = [{"first": {"name": f"b.{i}.a"}, "second": {"name": f"b.{i}.b"}} for i in range(20_000)]
    (tmp_path / "pairs.json").write_text(json.dumps({"version": 1, "pairs": pairs}, indent=1))
    begin = time.process_time()
    read = load_manifest(tmp_path / "pairs.json")
    assert time.process_time() - begin < 15  # 3 s on an idle core
    assert len(read.document.pairs) == 20_000
    assert read.where(19_999, ("second",)) == "{}:{} pairs[19999].second".format(
        tmp_path / "pairs.json", 3 + 19_999 * 8 + 5
    )
