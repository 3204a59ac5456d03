"""Formats: the stated error of one round trip, flags, and buffers of the stated size."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx.passes import FORMATS, TensorSpec
from dqar_fx.passes.support.formats import SMALLEST_KEPT
from tests.helpers.models import seeded
from tests.helpers.rewrite_checks import LOSSY

QUICK = settings(max_examples=40, deadline=None)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NARROW, EIGHT_BITS = ("fp16", "bf16"), ("int8", "int8-per-channel", "fp8")
SHAPES = ((7,), (2, 3), (2, 3, 4), (1, 1, 1), (2, 2, 3, 2))

each_format = pytest.mark.parametrize("name", FORMATS)
each_lossy = pytest.mark.parametrize("name", LOSSY)
each_eight_bits = pytest.mark.parametrize("name", EIGHT_BITS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
each_bad = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


def buffers_for(name, value):
    specs = FORMATS[name].specs(TensorSpec.of(torch.empty_like(value)))
    return [spec.allocate() for spec in specs]


def round_trip(name, value):
    """What is read of a value, and the buffers it went through."""
    buffers = buffers_for(name, value)
    FORMATS[name].write(value, buffers)
    return FORMATS[name].read(buffers, value.dtype), buffers


def error_of(name, value):
    """The error of one round trip, and the stated bound."""
    read, _ = round_trip(name, value)
    return (read.double() - value.double()).abs(), FORMATS[name].bound(value)


def is_flagged(name, value):
    return bool(round_trip(name, value)[1][-1])


def check_round_trip(name, value):
    """All that a round trip of finite numbers owes."""
    read, buffers = round_trip(name, value)
    assert (read.shape, read.dtype) == (value.shape, value.dtype)
    bound = FORMATS[name].bound(value)
    assert (bound.shape, bound.dtype) == (value.shape, torch.float64)
    excess = (read.double() - value.double()).abs() - bound
    assert (excess <= 0).all(), (value, read, bound)
    assert [b.dtype for b in buffers[1:]].count(torch.bool) == (name != "same")
    assert name == "same" or not buffers[-1], "finite numbers set the flag"


def largest(name, dtype):
    """The largest number of a dtype that a format keeps."""
    kept = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, dtype)
    if {kept, dtype} == {torch.float16, torch.bfloat16}:
        return 65280.0  # the largest one that is both
    return min(torch.finfo(kept).max, torch.finfo(dtype).max)


@st.composite
def values(draw, name, dtype):
    """A tensor of any finite numbers that a format keeps, in any layout."""
    shape = draw(st.sampled_from(SHAPES))
    top = largest(name, dtype)
    floats = st.floats(-top, top, width=16 if dtype == torch.float16 else 32)
    numbers = draw(st.lists(floats, min_size=math.prod(shape), max_size=math.prod(shape)))
    order = draw(st.permutations(range(len(shape))))
    return torch.tensor(numbers).to(dtype).reshape(shape).permute(order)


# ---- the error of a round trip -----------------------------------------------------------


@each_dtype
@each_format
@QUICK
@given(data=st.data())
def test_formats_any_finite_value_stays_within_the_bound(name, dtype, data):
    check_round_trip(name, data.draw(values(name, dtype)))


def with_outlier():
    value = seeded(2, 5, 8)
    value[1, 2, 3] = 1e4 * value.abs().max()
    return value


def with_zero_token():
    value = seeded(2, 5, 8)
    value[1, 2] = 0
    return value


def with_hot_channel():
    value = seeded(2, 5, 8)
    value[..., 3] *= 1e3
    return value


def with_tiny_token():
    value = seeded(2, 5, 8)
    value[1, 2] *= 2.0**-110
    return value


CASES = {
    "plain": lambda: seeded(2, 5, 8),
    "outlier": with_outlier,
    "zeros": lambda: torch.zeros(2, 5, 8),
    "negative_zero": lambda: torch.full((2, 5, 8), -0.0),
    "zero_token": with_zero_token,
    "tiny_token": with_tiny_token,
    "subnormal": lambda: seeded(2, 5, 8) * torch.finfo(torch.float32).tiny / 8,
    "half_subnormal": lambda: seeded(2, 5, 8) * 2.0**-17,
    "hot_channel": with_hot_channel,
    "vector": lambda: seeded(9),
    "matrix": lambda: seeded(5, 8),
    "tokens_of_one_channel": lambda: seeded(2, 5, 1),
    "one_token": lambda: seeded(2, 1, 8),
    "heads": lambda: seeded(2, 3, 5, 4),
    "heads_transposed": lambda: seeded(2, 5, 3, 4).transpose(1, 2),
    "keys_transposed": lambda: seeded(2, 3, 5, 4).mT,
    "sliced": lambda: seeded(2, 9, 8)[:, ::2],
    "expanded": lambda: seeded(1, 5, 8).expand(2, 5, 8),
}


@pytest.mark.parametrize("case", CASES)
@each_dtype
@each_format
def test_formats_named_value_stays_within_the_bound(name, dtype, case):
    value = CASES[case]().clamp(-65504, 65504)
    check_round_trip(name, value.to(dtype).clamp(-largest(name, dtype), largest(name, dtype)))


@each_dtype
@each_format
def test_formats_largest_numbers_read_as_finite_ones(name, dtype):
    top = largest(name, dtype)
    value = (torch.linspace(-1, 1, 80, dtype=torch.float64) * top).to(dtype).reshape(2, 5, 8)
    check_round_trip(name, value)
    assert round_trip(name, value)[0].isfinite().all()


@pytest.mark.parametrize("name", LOSSY)
def test_formats_largest_half_reads_as_finite_or_is_flagged(name):
    """Rounded to bfloat16, 65504 lies beyond float16."""
    read, buffers = round_trip(name, torch.full((2, 3), 65504.0, dtype=torch.float16))
    assert read.isfinite().all() or buffers[-1]


@each_eight_bits
@pytest.mark.parametrize("top", [100, 127, 180, 250, 400, 1500])
def test_formats_subnormal_halves_stay_within_the_bound(name, top):
    """Where numbers lie on a grid, reading rounds to it."""
    value = (torch.arange(top + 1) * 2.0**-24).half()
    check_round_trip(name, value[:, None] if "channel" in name else value)


@each_dtype
@each_eight_bits
def test_formats_below_the_smallest_scale_zero_is_kept(name, dtype):
    below = torch.full((3, 4), SMALLEST_KEPT * 0.99).to(dtype)
    at = torch.full((3, 4), SMALLEST_KEPT).to(dtype)
    assert not round_trip(name, below)[0].any()
    if dtype != torch.float16:  # where both are zero
        assert below.any()
        assert round_trip(name, at)[0].all()
    check_round_trip(name, below)
    check_round_trip(name, at)


@QUICK
@given(data=st.data())
def test_formats_same_is_exact(data):
    value = data.draw(values("same", torch.float32))
    read, (buffer,) = round_trip("same", value)
    assert read is buffer
    assert torch.equal(read.view(torch.int32), value.view(torch.int32))


REACHING = {
    "fp16": [torch.linspace(1, 2, 4001), torch.linspace(0, 2.0**-20, 4001)],
    "bf16": [torch.linspace(1, 2, 4001), torch.linspace(0, 2.0**-130, 4001)],
    "int8": [torch.linspace(-1, 1, 4001), torch.linspace(-1.4, 1.4, 4001)],
    "int8-per-channel": [torch.linspace(-1, 1, 4001)],
    "fp8": [torch.linspace(0.5, 1, 4001), torch.linspace(0, 2.0**-17, 4001)],
}


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in REACHING for case in range(len(REACHING[name]))],
)
def test_formats_bound_is_reached_by_no_less_than_a_quarter(name, case):
    """The stated bound is not much more than what happens, be it relative or absolute."""
    value = REACHING[name][case]
    if name == "fp8":  # the largest one tells the scale; it is not looked at
        value = torch.cat([value, torch.ones(1)])
    error, bound = error_of(name, value)
    assert (error <= bound).all()
    assert (error / bound)[:-1].max() >= 0.25


@each_dtype
@each_format
def test_formats_reading_gives_the_sites_dtype(name, dtype):
    numbers = [0.0, 1.0, -2.0]
    read, _ = round_trip(name, torch.tensor(numbers, dtype=dtype))
    assert read.dtype == dtype
    tolerance = 0 if name in ("same", *NARROW) else 2 / 252 + 2 * torch.finfo(dtype).eps
    assert read.tolist() == pytest.approx(numbers, abs=tolerance)


@each_lossy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_formats_what_was_read_is_kept_exactly(name, dtype):
    for case in ("plain", "outlier", "zero_token", "hot_channel", "vector", "heads"):
        once, buffers = round_trip(name, CASES[case]().clamp(-3e4, 3e4).to(dtype))
        again, rewritten = round_trip(name, once)
        assert torch.equal(again, once)
        for a, b in zip(buffers, rewritten, strict=True):
            assert torch.equal(a.float(), b.float())


@each_format
def test_formats_layout_does_not_matter(name):
    value = seeded(2, 3, 5, 4)
    turned = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert turned.stride() != value.stride()
    read, buffers = round_trip(name, turned)
    assert buffers[0].stride() == turned.stride()
    assert torch.equal(read, round_trip(name, value)[0])


# ---- scales ------------------------------------------------------------------------------


def to_bfloat16(numbers):
    """float32 rounded to bfloat16, ties to even, by its bits."""
    bits = np.asarray(numbers, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))
    return (rounded & np.uint64(0xFFFF0000)).astype(np.uint32).view(np.float32)


def quantised(value, axis):
    """Symmetric quantisation: scales, and integers before they are rounded."""
    top = np.abs(value).max(axis, keepdims=True)
    scale = to_bfloat16(top / np.float32(127))
    safe = np.where(scale > 0, scale, 1)
    exact = value.astype(np.float64) / safe.astype(np.float64)
    return scale, np.where(scale > 0, exact, 0).clip(-127, 127)


@pytest.mark.parametrize(("name", "axis"), [("int8", -1), ("int8-per-channel", -2)])
@pytest.mark.parametrize("case", ["plain", "outlier", "zero_token", "hot_channel", "heads"])
def test_formats_integers_equal_those_of_numpy(name, axis, case):
    value = CASES[case]()
    scale, exact = quantised(value.numpy(), axis)
    _, (numbers, scales, _) = round_trip(name, value)
    assert np.array_equal(scales.float().numpy(), scale)
    found = numbers.numpy()
    is_tie = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) < 2.0**-14  # float32's rounding
    assert is_tie.mean() < 0.02
    assert np.array_equal(found[~is_tie], np.round(exact)[~is_tie])
    assert (np.abs(found - exact) <= 0.5 + 2.0**-14).all()
    assert np.abs(found).max() == 127


def test_formats_integers_of_ties_are_even():
    value = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5])
    _, (numbers, scales, _) = round_trip("int8", value)
    assert scales.tolist() == [1.0]
    assert numbers.tolist() == [127, 0, 2, 2, 0, -2, -126]


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_formats_a_hot_token_does_not_touch_the_others(name):
    value = seeded(2, 5, 8)
    expected, _ = round_trip(name, value)
    value[1, 2] *= 1e4
    read, _ = round_trip(name, value)
    is_other = torch.ones(2, 5, dtype=torch.bool)
    is_other[1, 2] = False
    assert torch.equal(read[is_other], expected[is_other])


def test_formats_a_hot_channel_does_not_touch_the_others():
    expected, _ = round_trip("int8-per-channel", seeded(2, 5, 8))
    read, _ = round_trip("int8-per-channel", with_hot_channel())
    is_other = torch.arange(8) != 3
    assert torch.equal(read[..., is_other], expected[..., is_other])


# ---- what is not finite ------------------------------------------------------------------


def sharing(name, shape, place):
    """Which elements share their fate with the one at a place."""
    mask = torch.zeros(shape, dtype=torch.bool)
    group = {"int8": (*place[:-1], slice(None)), "fp8": (*place[:-1], slice(None))}
    group["int8-per-channel"] = (*place[:-2], slice(None), place[-1])
    mask[group.get(name, place)] = True
    return mask


@each_bad
@each_dtype
@each_lossy
@pytest.mark.parametrize("case", ["plain", "heads_transposed"])
def test_formats_what_is_not_finite_is_flagged_and_read_as_such(name, dtype, bad, case):
    value = CASES[case]().to(dtype).clone(memory_format=torch.preserve_format)
    expected, _ = round_trip(name, value)
    place = (1, 2, 3, 2) if value.dim() == 4 else (1, 2, 2)
    value[place] = bad
    read, buffers = round_trip(name, value)
    mask = sharing(name, value.shape, place)
    assert buffers[-1]
    assert torch.equal(~read.isfinite(), mask)
    assert torch.equal(read[~mask], expected[~mask])


@pytest.mark.parametrize("name", NARROW)
def test_formats_special_values_survive_a_narrow_format(name):
    read, _ = round_trip(name, torch.tensor([math.inf, -math.inf, math.nan, -0.0]))
    assert read[:2].tolist() == [math.inf, -math.inf]
    assert read[2].isnan()
    assert read[3].signbit()


def test_formats_same_has_no_flag_and_keeps_every_bit_of_nan():
    value = torch.tensor([math.nan, math.inf, -0.0])
    read, buffers = round_trip("same", value)
    assert len(buffers) == 1
    assert torch.equal(read.view(torch.int32), value.view(torch.int32))


@pytest.mark.parametrize(
    ("name", "fits", "overflows"),
    [("fp16", 65519.0, 65520.0), ("bf16", 3.3961e38, 3.3962e38)],
)
def test_formats_overflow_of_a_finite_number_is_flagged(name, fits, overflows):
    for sign in (1, -1):
        assert not is_flagged(name, torch.tensor([1.0, sign * fits]))
        assert is_flagged(name, torch.tensor([1.0, sign * overflows]))


@each_lossy
def test_formats_flag_outlasts_a_clean_write(name):
    clean, bad = seeded(2, 5, 8), seeded(2, 5, 8)
    bad[0, 0, 0] = math.nan
    _, buffers = round_trip(name, bad)
    FORMATS[name].write(clean, buffers)
    assert buffers[-1]
    read = FORMATS[name].read(buffers, clean.dtype)
    assert torch.equal(read, round_trip(name, clean)[0])
    buffers[-1].zero_()
    FORMATS[name].write(clean, buffers)
    assert not buffers[-1]


# ---- buffers -----------------------------------------------------------------------------


@st.composite
def layouts(draw):
    """A float32 tensor of any layout: dimensions in any order, of any size."""
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    return torch.empty(shape).permute(order)


@each_format
@QUICK
@given(layouts())
def test_formats_specs_tell_what_is_allocated(name, tensor):
    specs = FORMATS[name].specs(TensorSpec.of(tensor))
    buffers = [spec.allocate() for spec in specs]
    for spec, buffer in zip(specs, buffers, strict=True):
        assert buffer.untyped_storage().nbytes() == spec.nbytes
        assert TensorSpec.of(buffer) == spec
        assert not buffer.float().any()
    assert (buffers[0].shape, buffers[0].stride()) == (tensor.shape, tensor.stride())


@each_dtype
@each_format
def test_formats_writing_leaves_the_buffers_where_they_are(name, dtype):
    value = seeded(2, 5, 3, 4).transpose(1, 2).to(dtype)
    buffers = buffers_for(name, value)
    before = [(b.data_ptr(), TensorSpec.of(b)) for b in buffers]
    FORMATS[name].write(value, buffers)
    assert [(b.data_ptr(), TensorSpec.of(b)) for b in buffers] == before


@pytest.mark.parametrize("shape", [(16, 49, 128), (16, 4, 49, 32)], ids=["output", "keys"])
@each_eight_bits
def test_formats_eight_bits_stay_eight_bits(name, shape):
    """Scales and flag included, no more than 55 % of what fp16 takes."""
    kept = TensorSpec.of(torch.empty(shape))
    taken, half = (sum(s.nbytes for s in FORMATS[n].specs(kept)) for n in (name, "fp16"))
    assert half == 2 * math.prod(shape) + 1
    assert math.prod(shape) < taken <= 0.55 * half


@each_format
def test_formats_devices_are_the_sites(name):
    specs = FORMATS[name].specs(TensorSpec.of(torch.empty(2, 3, device="meta")))
    assert {spec.device.type for spec in specs} == {"meta"}


@each_format
def test_rounding_is_the_usual_error_of_normal_numbers(name):
    value = torch.randn(64, 49, 128, generator=torch.Generator().manual_seed(3))
    error, _ = error_of(name, value)
    found = float(error.square().mean().sqrt() / value.double().square().mean().sqrt())
    # sites have larger magnitudes beside their usual ones than normal numbers have
    assert found <= FORMATS[name].rounding * 1.06
    assert found >= FORMATS[name].rounding * 0.7
