"""Tensors of earlier calls: the same object, the same values, or written to since."""

from __future__ import annotations

import pytest
import torch

from dqar_fx.steps.seen import SeenTensor, digest_of

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.complex64]


def values(dtype, size=40):
    generator = torch.Generator().manual_seed(0)
    return (10 * torch.randn(size, generator=generator)).to(dtype)


def swapped(value):
    other = value.clone()
    other[3], other[17] = value[17].clone(), value[3].clone()
    return other


def negated_twice(value):
    other = value.clone()
    other[4:6] *= -1
    return other


def one_changed(value):
    other = value.clone()
    other[-1] += 1
    return other


CHANGES = {
    "reversed": lambda value: value.flip(0),
    "rolled": lambda value: value.roll(1),
    "two swapped": swapped,
    "negated": lambda value: -value,
    "two negated": negated_twice,
    "one element": one_changed,
    "two elements by the same": lambda value: torch.cat([value[:2] + 1, value[2:]]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_digest_of_other_values_is_another_one(dtype, change):
    value = values(dtype)
    assert torch.equal(bits(digest_of(value)), bits(digest_of(value.clone())))
    assert not torch.equal(bits(digest_of(value)), bits(digest_of(change(value))))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.inference_mode()
def test_seen_tensor_written_in_inference_mode_is_another_one(change):
    value = values(torch.float32)
    seen = SeenTensor.of(value)
    assert seen.is_equal(value)
    value.copy_(change(value).clone())
    assert not seen.is_equal(value)
    assert not seen.is_same(value)


def test_seen_tensor_of_nan_and_infinity_is_itself_in_inference_mode():
    with torch.inference_mode():
        value = torch.tensor([float("nan"), float("inf"), 1.0])
        seen = SeenTensor.of(value)
        assert seen.is_equal(value.clone())
        value[2] = 2
        assert not seen.is_equal(value)


@pytest.mark.parametrize("write", [torch.no_grad, torch.inference_mode])
def test_seen_tensor_written_in_place_is_another_one(write):
    value = values(torch.float32)
    seen = SeenTensor.of(value)
    assert seen.is_same(value)
    with write():
        value[5] += 1
    assert not seen.is_equal(value)


def test_seen_tensor_written_and_given_as_a_copy_is_not_known_any_more():
    """What the remembered tensor had before it was written to is not there to compare."""
    value = values(torch.float32)
    before = value.clone()
    seen = SeenTensor.of(value)
    value.zero_()
    assert not seen.is_equal(before)
    assert not seen.is_equal(value)


def test_seen_tensor_is_the_same_through_another_view_object():
    pair = values(torch.float32)
    assert SeenTensor.of(pair[:20]).is_same(pair[:20])
    assert not SeenTensor.of(pair[:20]).is_same(pair[20:])


def test_seen_tensor_with_equal_values_in_other_memory_is_equal_and_not_the_same():
    value = values(torch.float32)
    seen = SeenTensor.of(value)
    assert not seen.is_same(value.clone())
    assert seen.is_equal(value.clone())


@pytest.mark.parametrize(
    "other",
    [values(torch.float32)[:39], values(torch.float64), values(torch.float32)[None]],
    ids=["shorter", "dtype", "shape"],
)
def test_seen_tensor_of_another_kind_is_never_equal(other):
    assert not SeenTensor.of(values(torch.float32)).is_equal(other)


def bits(digest):
    return digest.view(torch.int64)
