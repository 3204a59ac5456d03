"""What errors of several places have in common."""

from __future__ import annotations

import pytest

from dqar_fx.errors import DqarError, OptionError, check_known


@pytest.mark.parametrize("value", ["b", None])
def test_check_known_gives_the_value(value):
    assert check_known("way=", value, ("a", "b", None)) == value


@pytest.mark.parametrize("value", ["c", None, 0, ["a"], {"a": "b"}])
def test_check_known_lists_the_names_for_others(value):
    with pytest.raises(OptionError) as caught:
        check_known("way=", value, {"a": 1, "b": 2}, note=", or none")
    assert str(caught.value) == f"way={value!r} is unknown; known are a, b, or none"


def test_check_known_raises_the_kind_that_is_asked_for():
    with pytest.raises(DqarError, match="way='c' is unknown") as caught:
        check_known("way=", "c", ("a",), DqarError)
    assert type(caught.value) is DqarError
