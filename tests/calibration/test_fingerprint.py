"""Fingerprints: which model a gate was made for, and that others are refused."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dqar_fx import Schedule, ScheduleError, entropy_gate, policy_gate, transform
from dqar_fx.calibration.fingerprint import Fingerprint
from tests.helpers.models import make_dit, make_sd3
from tests.helpers.random_calibrations import random_calibration, random_policy

STEPS = 4
ADVICE = "Calibrate this model with dqar_fx.calibrate(pipeline, ...)"


@pytest.fixture(scope="module")
def model():
    return make_dit(layers=2).model


@pytest.fixture(scope="module")
def gates(model):
    """A gate of each kind that belongs to the model, and combinations of them."""
    own = {"fingerprint": Fingerprint.of(model)}
    entropy = entropy_gate(replace(random_calibration(0, STEPS, 2, 2), **own), 0.5)
    policy = policy_gate(replace(random_policy(0, STEPS, 2, 2), **own), 0.05)
    linear, interval = Schedule.linear(STEPS, 1), Schedule.interval(STEPS, 2, max_age=2)
    return {
        "entropy": entropy,
        "policy": policy,
        "entropy & linear": entropy & linear,
        "interval | policy": interval | policy,
        "(interval & entropy) | linear": (interval & entropy) | linear,
        "policy with an age in a combination": replace(policy, max_age=2) & linear,
    }


GATES = [
    "entropy",
    "policy",
    "entropy & linear",
    "interval | policy",
    "(interval & entropy) | linear",
    "policy with an age in a combination",
]


def changed(model, by):
    """A copy with other weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return other


# ---- transform ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATES)
def test_transform_gate_of_this_model_is_accepted(model, gates, name):
    denoiser = transform(model, gates[name])
    assert denoiser.config is model.config or denoiser.config == model.config


@pytest.mark.parametrize("name", GATES)
def test_transform_gate_of_other_weights_is_refused(model, gates, name):
    with pytest.raises(ScheduleError) as caught:
        transform(changed(model, by=0.1), gates[name])
    message = str(caught.value)
    what = "the learned policy" if "policy" in name else "the entropy gate"
    assert message.startswith(f"{what} was measured on another model: ")
    total = len(list(model.parameters()))
    assert f" of {total} parameters have other values. " in message
    assert message.endswith(ADVICE)


@pytest.mark.parametrize("name", GATES)
def test_transform_gate_of_another_size_is_refused(gates, name):
    with pytest.raises(ScheduleError) as caught:
        transform(make_dit(layers=3).model, gates[name])
    message = str(caught.value)
    assert "a DiTTransformer2DModel of other parameters or another size. " in message
    assert message.endswith(ADVICE)


def test_transform_gate_of_another_class_is_refused(gates):
    with pytest.raises(ScheduleError) as caught:
        transform(make_sd3().model, gates["policy"])
    assert str(caught.value) == (
        "the learned policy was measured on another model: a DiTTransformer2DModel, but this "
        f"is a SD3Transformer2DModel. {ADVICE}"
    )


SAME = {
    "a copy": copy.deepcopy,
    "bfloat16": lambda model: copy.deepcopy(model).to(torch.bfloat16),
    "float16": lambda model: copy.deepcopy(model).half(),
    "float64": lambda model: copy.deepcopy(model).double(),
    "float16 of bfloat16": lambda model: copy.deepcopy(model).to(torch.bfloat16).half(),
    "wrapped by torch.compile": torch.compile,
    "a bfloat16 copy, wrapped": lambda m: torch.compile(copy.deepcopy(m).to(torch.bfloat16)),
    "compiled in place": lambda model: compiled_in_place(copy.deepcopy(model)),
    "on the meta device": lambda model: copy.deepcopy(model).to("meta"),
    "in training mode": lambda model: copy.deepcopy(model).train(),
    "without gradients": lambda model: copy.deepcopy(model).requires_grad_(False),
}


def compiled_in_place(model):
    model.compile()
    return model


@pytest.mark.parametrize("how", SAME)
@pytest.mark.parametrize("name", ["policy", "(interval & entropy) | linear"])
def test_transform_same_model_in_another_form_is_accepted(model, gates, how, name):
    transform(SAME[how](model), gates[name])


def test_transform_rules_take_any_model(model):
    schedule = Schedule.linear(STEPS, 1) & Schedule.interval(STEPS, 2)
    for each in (model, changed(model, by=1), nn.Linear(2, 2)):
        transform(each, schedule | Schedule.from_actions("CCRR"))


def test_with_schedule_gate_of_another_model_is_refused(model, gates):
    denoiser = transform(changed(model, by=0.1), Schedule.linear(STEPS, 1))
    with pytest.raises(ScheduleError, match="was measured on another model"):
        denoiser.with_schedule(gates["entropy & linear"])


def test_with_schedule_gate_of_this_model_is_accepted(model, gates):
    transform(model, Schedule.linear(STEPS, 1)).with_schedule(gates["policy"])


# ---- what is compared --------------------------------------------------------------------


def test_fingerprint_of_one_model_twice_is_the_same(model):
    one, two = (Fingerprint.of(model) for _ in range(2))
    assert (one.model, one.structure) == (two.model, two.structure)
    assert torch.equal(one.values, two.values)


def test_fingerprint_looks_at_eight_values_of_each_parameter(model):
    values = Fingerprint.of(model).values
    assert values.shape == (len(list(model.parameters())), 8)
    assert (values.dtype, values.device.type) == (torch.float32, "cpu")
    assert not values.requires_grad


def test_fingerprint_values_are_those_of_the_parameters():
    linear = nn.Linear(8, 1)
    values = Fingerprint.of(linear).values  # by name: the bias first
    assert torch.equal(values[0], linear.bias.detach().expand(8))
    assert torch.equal(values[1], linear.weight.detach()[0])


def test_fingerprint_leaves_the_model_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Fingerprint.of(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("by", [0.5, 0.1, 0.02, 1e-3])
def test_fingerprint_fine_tuned_model_is_another(model, by):
    found = Fingerprint.of(model)
    with pytest.raises(ScheduleError, match="have other values"):
        found.refuse_other(changed(model, by), "this")


def test_fingerprint_fine_tuned_small_weights_are_others():
    small = nn.Linear(64, 64)
    with torch.no_grad():
        small.weight.normal_(std=0.02)
        small.bias.zero_()
    found = Fingerprint.of(small)
    with pytest.raises(ScheduleError, match="have other values"):
        found.refuse_other(changed(small, by=5e-4), "this")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 100.0])
def test_fingerprint_half_precision_of_any_size_is_the_same(dtype, size):
    linear = nn.Linear(64, 64)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(std=size)
    Fingerprint.of(linear).refuse_other(copy.deepcopy(linear).to(dtype), "this")
    Fingerprint.of(copy.deepcopy(linear).to(dtype)).refuse_other(linear, "this")


class Renamed(nn.Module):
    def __init__(self, **parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))


@pytest.mark.parametrize(
    "other",
    [
        Renamed(b=torch.ones(4)),
        Renamed(a=torch.ones(2, 2)),
        Renamed(a=torch.ones(5)),
        Renamed(a=torch.ones(4), b=torch.ones(4)),
        Renamed(),
    ],
    ids=["name", "shape", "size", "more", "none"],
)
def test_fingerprint_other_parameters_are_another_model(other):
    found = Fingerprint.of(Renamed(a=torch.ones(4)))
    with pytest.raises(ScheduleError, match="a Renamed of other parameters or another size"):
        found.refuse_other(other, "this")


def test_fingerprint_order_of_parameters_does_not_matter():
    one, two = torch.ones(2), torch.zeros(2)
    found = Fingerprint.of(Renamed(a=one, b=two))
    found.refuse_other(Renamed(b=two, a=one), "this")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (0, 4)])
def test_fingerprint_small_parameters_are_compared(shape):
    own = Renamed(a=torch.ones(shape))
    Fingerprint.of(own).refuse_other(copy.deepcopy(own), "this")
    if math.prod(shape):
        with pytest.raises(ScheduleError):
            Fingerprint.of(own).refuse_other(Renamed(a=torch.zeros(shape)), "this")


def test_fingerprint_model_without_parameters_is_known_by_its_class():
    Fingerprint.of(nn.Identity()).refuse_other(nn.Identity(), "this")
    with pytest.raises(ScheduleError, match="a Identity, but this is a ReLU"):
        Fingerprint.of(nn.Identity()).refuse_other(nn.ReLU(), "this")


def test_fingerprint_parameter_that_is_not_contiguous_is_read_in_order():
    turned = Renamed(a=torch.arange(64.0).reshape(8, 8).T)
    plain = Renamed(a=turned.a.detach().contiguous())
    Fingerprint.of(turned).refuse_other(plain, "this")


def test_fingerprint_last_value_is_looked_at():
    own = Renamed(a=torch.zeros(1000))
    other = copy.deepcopy(own)
    with torch.no_grad():
        other.a[-1] = 1
    with pytest.raises(ScheduleError):
        Fingerprint.of(own).refuse_other(other, "this")


@pytest.mark.parametrize(
    "shape",
    [(2432, 9728), (3072, 12288), (4096, 8192), (2**24 + 1,), (2**24 + 2,), (10**9,)],
    ids=str,
)
def test_fingerprint_of_a_large_parameter_stays_inside(shape):
    large = nn.Parameter(torch.zeros(1).expand(shape), requires_grad=False)  # one number
    values = Fingerprint.of(Renamed(a=large)).values
    assert values.tolist() == [[0.0] * 8]


def test_fingerprint_meta_parameters_are_compared_by_shape_alone(model):
    meta = copy.deepcopy(model).to("meta")
    assert Fingerprint.of(meta).values.shape == (0, 8)
    Fingerprint.of(model).refuse_other(meta, "this")
    Fingerprint.of(meta).refuse_other(model, "this")
    with pytest.raises(ScheduleError, match="another size"):
        Fingerprint.of(make_dit(layers=3).model).refuse_other(meta, "this")


def test_fingerprint_weights_that_are_no_numbers_are_themselves():
    own = Renamed(a=torch.tensor([math.nan, math.inf, 1.0]))
    Fingerprint.of(own).refuse_other(copy.deepcopy(own), "this")


def test_gate_fingerprint_survives_files(model, tmp_path):
    calibration = replace(random_calibration(0, 4, 2, 2), fingerprint=Fingerprint.of(model))
    calibration.save(tmp_path)
    loaded = type(calibration).load(tmp_path)
    gate = entropy_gate(loaded, 0.5)
    gate.refuse_other_model(model)
    with pytest.raises(ScheduleError, match="the entropy gate was measured on another model"):
        gate.refuse_other_model(changed(model, by=0.1))
    assert np.array_equal(loaded.fingerprint.values, calibration.fingerprint.values)
