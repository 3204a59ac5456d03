"""The lists of passes: complete, told apart by what they do to values, and without any."""

from functools import partial
from pathlib import Path

import pytest

from dqar_fx import passes
from dqar_fx.errors import OptionError
from dqar_fx.passes import narrow_linears, normalise, outline_regions, unify_layouts
from dqar_fx.passes.pipeline import (
    BEFORE_SITES,
    BEFORE_SITES_COMPILED,
    COMPILED,
    PASS_NAMES,
    PIPELINES,
    REQUIRED,
    check_disable,
    preserves_values,
    select_before_sites,
    select_passes,
)

NO_PASSES = {"__init__", "pipeline", "site_kinds", "find_sites"}
FOR_COMPILERS = {
    "BEFORE_SITES_COMPILED",
    "COMPILED",
    "COMPILED_ANY_BATCH",
    "BEFORE_COMPILED_ANY_BATCH",
    "PACKED",
    "STAGE_AHEAD",
}


def test_pipelines_list_the_pass_of_every_file():
    files = {path.stem for path in Path(passes.__file__).parent.glob("*.py")}
    assert files - NO_PASSES == set(PASS_NAMES)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_preserve_values_but_for_compilers(name):
    assert preserves_values(PIPELINES[name]) == (name not in FOR_COMPILERS)


def test_preserves_values_sees_through_bound_options():
    assert preserves_values([normalise, partial(outline_regions, blocks=())])
    assert not preserves_values([normalise, partial(unify_layouts, blocks=())])


def test_select_passes_keeps_order_binds_options_and_leaves_out():
    first, second = select_passes(
        (normalise, unify_layouts), (), {unify_layouts: {"blocks": 1}}
    )
    assert first is normalise
    assert (second.func, second.keywords) == (unify_layouts, {"blocks": 1})
    assert select_passes(COMPILED, ("turn_skinny_linears",)) == [narrow_linears]
    assert select_passes(COMPILED, PASS_NAMES) == []


@pytest.mark.parametrize(
    ("compiled", "expected"), [(False, BEFORE_SITES), (True, BEFORE_SITES_COMPILED)]
)
def test_select_before_sites_lists_them_bound(compiled, expected):
    found = select_before_sites(compiled=compiled, blocks=("blocks.0",))
    assert [getattr(each, "func", each) for each in found] == list(expected)


@pytest.mark.parametrize(
    ("disable", "merges"),
    [((), True), (["merge_duplicates"], False), (["unify_layouts"], True)],
)
def test_select_before_sites_says_whether_hoisting_merges(disable, merges):
    found = select_before_sites(compiled=False, blocks=(), disable=disable)
    assert found[-1].keywords == {"merges": merges}


@pytest.mark.parametrize("name", sorted(set(PASS_NAMES) - set(REQUIRED)))
def test_check_disable_known_name_is_given_back(name):
    assert check_disable([name]) == (name,)


@pytest.mark.parametrize("name", REQUIRED)
def test_check_disable_required_pass_says_why_not(name):
    assert name in PASS_NAMES
    with pytest.raises(OptionError, match=rf"disable='{name}': it cannot be left out: .+"):
        check_disable((name,))


@pytest.mark.parametrize("name", ["narrow", "Normalise", "", 3, None])
def test_check_disable_unknown_name_lists_the_known(name):
    with pytest.raises(OptionError, match=r"unknown; known are .*normalise.*narrow_linears"):
        check_disable((name,))


@pytest.mark.parametrize("disable", ["narrow_linears", None, 3, {"normalise": True}])
def test_check_disable_no_sequence_of_names_raises(disable):
    with pytest.raises(OptionError, match="expected names of passes, such as"):
        check_disable(disable)
