"""Values as JSON: what is written, and that only such is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pytest

from dqar_fx.errors import DqarError
from dqar_fx.json_value import JsonValue


@dataclass(frozen=True)
class Part:
    ms: float
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class WholeValue(JsonValue):
    name: str | None
    parts: Mapping[str, Part]
    source: object = field(default=None, compare=False)


VALUE = WholeValue("ä", {"a": Part(0.1, (1, 2)), "b": Part(float("inf"))}, source=object())


def test_json_value_is_written_field_by_field_without_what_equality_ignores():
    content = {"name": "ä", "parts": {"a": asdict(VALUE.parts["a"]), "b": asdict(Part(1e999))}}
    assert VALUE.to_json() == json.dumps(content)


def test_json_value_and_back_is_equal_and_lacks_what_equality_ignores():
    again = WholeValue.from_json(VALUE.to_json())
    assert again == VALUE
    assert again.source is None


def test_json_value_reads_defaults_and_whole_numbers():
    again = WholeValue.from_json('{"name": null, "parts": {"a": {"ms": 1}}}')
    assert again == WholeValue(None, {"a": Part(1.0)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "JSONDecodeError"),
        ("[]", "ValidationError: Expected `object`, got `array`"),
        ('{"parts": {}}', "missing required field `name`"),
        ('{"name": 3, "parts": {}}', r"got `int` - at `\$.name`"),
        ('{"name": "", "parts": {"a": {"ms": "1"}}}', r"Expected `float`, got `str` - at"),
        ('{"name": "", "parts": {"a": {"ms": 1, "steps": [0.5]}}}', r"got `float` - at"),
    ],
)
def test_json_of_something_else_is_refused(text, reason):
    with pytest.raises(DqarError, match=rf"no whole value in JSON: .*{reason}.*to_json\(\)"):
        WholeValue.from_json(text)
