"""Formats: the stated error of one round trip, and buffers of the stated size."""

import math

import pytest
import torch
from dqar_fx.passes import FORMATS, TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st

SLOW = settings(max_examples=50, deadline=None)
FLOATS = {"width": 32, "allow_nan": False, "allow_infinity": False}


def round_trip(name, values, dtype=torch.float32):
    tensor = torch.tensor(values, dtype=dtype)
    kept = FORMATS[name].encode(tensor)
    return tensor, FORMATS[name].decode(kept, dtype)


def lists(**bounds):
    return st.lists(st.floats(**{**FLOATS, **bounds}), min_size=1, max_size=20)


@st.composite
def layouts(draw):
    """A float32 tensor of any layout: dimensions in any order, of any size."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    order = draw(st.permutations(range(len(shape))))
    return torch.empty(shape).permute(order)


@SLOW
@given(lists())
def test_formats_same_is_exact(values):
    tensor, read = round_trip("same", values)
    assert read is tensor


@SLOW
@given(lists(min_value=-65504.0, max_value=65504.0))
def test_formats_fp16_error_within_the_bound(values):
    for value, read in zip(*map(torch.Tensor.tolist, round_trip("fp16", values)), strict=True):
        normal = abs(value) >= 2.0**-14
        assert abs(read - value) <= (2.0**-11 * abs(value) if normal else 2.0**-25)


@SLOW
@given(lists(min_value=-(2.0**-14), max_value=2.0**-14))
def test_formats_fp16_subnormal_error_within_the_bound(values):
    tensor, read = round_trip("fp16", values)
    assert ((read - tensor).double().abs() <= 2.0**-25).all()


BFLOAT_MAX = torch.finfo(torch.bfloat16).max


@SLOW
@given(lists(min_value=-BFLOAT_MAX, max_value=BFLOAT_MAX))
def test_formats_bf16_error_within_the_bound(values):
    tensor, read = (x.double() for x in round_trip("bf16", values))
    smallest = torch.finfo(torch.bfloat16).tiny
    bound = 2.0**-8 * tensor.abs().clamp(min=smallest)
    assert ((read - tensor).abs() <= bound).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_formats_decode_gives_the_sites_dtype(name, dtype):
    _, read = round_trip(name, [0.0, 1.0, -2.5], dtype)
    assert read.dtype == dtype
    assert read.tolist() == [0.0, 1.0, -2.5]


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_formats_special_values_survive(name):
    _, read = round_trip(name, [math.inf, -math.inf, math.nan, -0.0])
    assert read[:2].tolist() == [math.inf, -math.inf]
    assert read[2].isnan()
    assert read[3].signbit()


@pytest.mark.parametrize("name", FORMATS)
def test_formats_bound_is_reached_by_no_less_than_a_quarter(name):
    """The stated bound is not much more than what happens."""
    values = torch.linspace(1, 2, 4001, dtype=torch.float32)
    tensor, read = round_trip(name, values.tolist())
    error = ((read - tensor) / tensor).abs().max().item()
    bound = FORMATS[name].relative_error
    assert bound / 4 <= error <= bound


@pytest.mark.parametrize("name", FORMATS)
@SLOW
@given(layouts())
def test_formats_specs_tell_what_is_allocated(name, tensor):
    (spec,) = FORMATS[name].specs(TensorSpec.of(tensor))
    buffer = spec.allocate()
    assert buffer.untyped_storage().nbytes() == spec.nbytes
    assert TensorSpec.of(buffer) == spec
    assert spec.shape == tensor.shape
    assert spec.dtype == (FORMATS[name].dtype or torch.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_encode_fits_the_specs(name):
    tensor = torch.ones(2, 3).T
    parts = FORMATS[name].encode(tensor)
    assert tuple(map(TensorSpec.of, parts)) == FORMATS[name].specs(TensorSpec.of(tensor))
