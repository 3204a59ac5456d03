"""Patterns: what fits, what does not, and values that are made of them."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from dqar_fx.capture.patterns import contiguous, fill, fits, pattern_of, tensors_of, unknown_in

PLAIN = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, -0.0, "a"])
TENSORS = st.tuples(st.integers(1, 3), st.sampled_from([torch.float32, torch.int64])).map(
    lambda made: torch.zeros(made[0], dtype=made[1])
)
VALUES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_patterns_fit_what_they_are_made_of_and_make_it_again(value):
    pattern, found = pattern_of(value), []
    assert fits(value, pattern, found)
    tensors = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
    assert [*map(id, found)] == [*map(id, tensors)]
    assert len(tensors_of(pattern)) == len(tensors)
    again = fill(pattern, iter(tensors))
    assert pytree.tree_structure(again) == pytree.tree_structure(value)
    assert pattern_of(again) == pattern


@given(VALUES, VALUES)
def test_patterns_fit_exactly_what_has_an_equal_one(one, other):
    is_same = pattern_of(one) == pattern_of(other)
    assert fits(other, pattern_of(one), []) == is_same
    assert not is_same or hash(pattern_of(one)) == hash(pattern_of(other))


@pytest.mark.parametrize(("one", "other"), [(1, True), (0.0, -0.0), ((1,), [1]), (None, 0)])
def test_patterns_tell_equal_values_of_other_kinds_apart(one, other):
    assert not fits(other, pattern_of(one), [])


def test_patterns_know_what_no_graph_can_take():
    assert unknown_in(pattern_of({"a": [torch.ones(1), object()]})) == "object"
    assert unknown_in(pattern_of({"a": [torch.ones(1), 1]})) == ""
    assert not fits(object(), pattern_of(object()), [])


def test_patterns_give_tensors_the_strides_that_they_have():
    strided = torch.arange(6.0).reshape(2, 3).t()
    found = []
    assert fits(strided, contiguous(pattern_of(strided)), found, settles=True)
    assert found[0].is_contiguous()
    assert torch.equal(found[0], strided)
    overlapping = torch.ones(1, 3).expand(2, 3)
    (dense,) = tensors_of(contiguous(pattern_of(overlapping), overlapping=True))
    assert dense.stride == (3, 1)
    assert contiguous(pattern_of(strided), overlapping=True) == pattern_of(strided)
