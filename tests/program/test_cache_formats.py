"""Cache formats of a denoiser: bytes, what reuse reads, flags, devices that lack a format."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch._subclasses import FakeTensorMode

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.builder import cache_support
from dqar_fx.passes import FORMATS, TensorSpec
from tests.helpers.hook_oracle import KeyValueOracle, Oracle
from tests.helpers.models import make_dit, make_sd3, settled
from tests.helpers.rewrite_checks import LOSSY
from tests.helpers.slow_cases import slow_but

BLOCKS = ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1")
ORACLES = {"output": Oracle, "kv": KeyValueOracle}

each_lossy = pytest.mark.parametrize("cache", LOSSY)
each_kept = pytest.mark.parametrize("keep", slow_but("output", of=ORACLES))


def slot(name):
    """What becomes of a value that goes through a slot of a format."""

    def through(value):
        specs = FORMATS[name].specs(TensorSpec.of(torch.empty_like(value)))
        buffers = [spec.allocate() for spec in specs]
        FORMATS[name].write(value, buffers)
        return FORMATS[name].read(buffers, value.dtype)

    return through


def transformed(case, cache, keep="output", actions="SR"):
    return dqar_fx.transform(
        case.model, Schedule.from_actions(actions), cache=cache, keep=keep
    )


@pytest.fixture(scope="module")
def prepared():
    """A model of two layers, and its denoisers, captured once per format and kind."""
    case, made = make_dit(layers=2), {}

    def prepare(cache, keep="output", actions="SR"):
        if (cache, keep) not in made:
            made[cache, keep] = transformed(case, cache, keep)
            made[cache, keep].prepare(**case.inputs(0))
        return case, made[cache, keep].with_schedule(Schedule.from_actions(actions))

    return prepare


# ---- bytes and values --------------------------------------------------------------------


@each_kept
@pytest.mark.parametrize("cache", FORMATS)
def test_cache_formats_slots_take_the_announced_bytes(prepared, cache, keep):
    case, denoiser = prepared(cache, keep)
    announced = denoiser.cache_bytes
    numbers = {"output": 1, "kv": 2}[keep] * 2 * (2 * 36 * 60)
    assert announced >= numbers * {"same": 4, "fp16": 2, "bf16": 2}.get(cache, 1)
    denoiser(**case.inputs(0))
    (stream,) = denoiser.program.streams.values()
    assert stream.slots.nbytes == announced
    assert denoiser.cache_bytes == announced


@each_kept
@pytest.mark.parametrize("cache", FORMATS)
def test_cache_formats_reuse_equals_the_oracle_through_the_format(prepared, cache, keep):
    case, denoiser = prepared(cache, keep, "SRSR")
    oracle, exact = ORACLES[keep](case.model, slot(cache)), ORACLES[keep](case.model)
    for step in range(4):
        inputs, row = case.inputs(step), denoiser.table.actions[step]
        result = denoiser(**inputs).sample
        assert torch.equal(result, oracle(row, **inputs)), step
        is_rounded = cache != "same" and step in (1, 3)
        assert torch.equal(result, exact(row, **inputs)) == (not is_rounded)


@pytest.mark.parametrize(
    ("cache", "keep"),
    slow_but(
        ("fp8", "output"),
        of=[("int8", "output"), ("int8-per-channel", "kv"), ("fp8", "output"), ("fp8", "kv")],
    ),
)
def test_cache_formats_of_a_bf16_model_equal_the_oracle(cache, keep):
    case = make_dit(layers=2).to(torch.bfloat16)
    denoiser, oracle = transformed(case, cache, keep), ORACLES[keep](case.model, slot(cache))
    for step in range(2):
        inputs = case.inputs(step)
        result = denoiser(**inputs).sample
        assert torch.equal(result, oracle(denoiser.table.actions[step], **inputs))


@each_kept
def test_cache_formats_of_joint_attention_equal_the_oracle(keep):
    case = make_sd3()
    denoiser, oracle = transformed(case, "int8", keep), ORACLES[keep](case.model, slot("int8"))
    for step in range(2):
        inputs = case.inputs(step)
        result = denoiser(**inputs).sample
        assert torch.equal(result, oracle(denoiser.table.actions[step], **inputs))


@each_kept
def test_cache_formats_int8_takes_about_half_the_bytes_of_fp16(keep):
    """The geometry of the reference pipeline, eight pictures with guidance."""
    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        num_layers=2,
        sample_size=14,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    inputs = {
        "hidden_states": torch.zeros(16, 4, 14, 14),
        "timestep": torch.zeros(16),
        "class_labels": torch.zeros(16, dtype=torch.int64),
    }
    int8, fp16 = (
        dqar_fx.transform(
            settled(model),
            Schedule.from_actions("SR"),
            cache=cache,
            keep=keep,
            example_inputs=inputs,
        ).cache_bytes
        for cache in ("int8", "fp16")
    )
    numbers, scales = 16 * 49 * 128, 16 * 49 * (4 if keep == "kv" else 1)
    kept = 2 * (2 if keep == "kv" else 1)
    assert fp16 == kept * (2 * numbers + 1)
    assert int8 == kept * (numbers + 2 * scales + 1)
    assert int8 <= 0.55 * fp16


# ---- flags -------------------------------------------------------------------------------


def warned(denoiser, inputs):
    """What a call warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        denoiser(**inputs)
    return [str(each.message) for each in caught]


def warned_steps(denoiser, case, *, bad=(), steps=4, seed=0):
    """How many warnings each step of a trajectory gives; the latent of bad ones has a NaN."""
    counts = []
    for step in range(steps):
        inputs = case.inputs(step, seed)
        if step in bad:
            inputs["hidden_states"][1, 2, 3, 4] = torch.nan
        counts.append(len(warned(denoiser, inputs)))
    return counts


@each_kept
@each_lossy
def test_cache_formats_nan_is_told_once_per_occurrence(prepared, cache, keep):
    case, denoiser = prepared(cache, keep, "SRSR")
    assert warned_steps(denoiser, case) == [0, 0, 0, 0]
    assert warned_steps(denoiser, case, bad=[0], seed=1) == [1, 0, 0, 0]
    assert warned_steps(denoiser, case, bad=[2], seed=2) == [0, 0, 1, 0]
    assert warned_steps(denoiser, case, bad=[0, 2], seed=3) == [1, 0, 1, 0]
    assert warned_steps(denoiser, case, bad=[1, 3], seed=4) == [0, 0, 0, 0]  # nothing is kept
    assert warned_steps(denoiser, case, seed=5) == [0, 0, 0, 0]


def test_cache_formats_same_keeps_nan_without_a_word(prepared):
    case, denoiser = prepared("same", actions="SRSR")
    assert warned_steps(denoiser, case, bad=[0, 2]) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("cache", "keep"),
    slow_but(
        ("int8", "kv"),
        of=[("bf16", "output"), ("int8", "output"), ("int8", "kv"), ("fp8", "kv")],
    ),
)
def test_cache_formats_nan_of_one_site_names_it_alone(cache, keep):
    case = make_dit(layers=2)
    attention = case.model.transformer_blocks[1].attn1
    with torch.no_grad():
        (attention.to_v if keep == "kv" else attention.to_out[0]).bias[0] = torch.nan
    denoiser = transformed(case, cache, keep)
    with pytest.warns(UserWarning, match="1 of 2 sites kept NaN or infinity") as caught:
        denoiser(**case.inputs(0))
    (message,) = (str(each.message) for each in caught)
    assert BLOCKS[1] in message
    assert BLOCKS[0] not in message
    assert warned(denoiser, case.inputs(1)) == []
    denoiser.reset()
    assert warned(denoiser, case.inputs(0)) == [message]


@each_kept
def test_cache_formats_overflow_is_told_of_fp16_alone(keep):
    case = make_dit(layers=2)
    attention = case.model.transformer_blocks[1].attn1
    with torch.no_grad():
        (attention.to_v if keep == "kv" else attention.to_out[0]).weight.mul_(1e6)
    for cache in ("fp16", "int8"):
        denoiser = transformed(case, cache, keep)
        messages = warned(denoiser, case.inputs(0))
        if cache == "fp16":
            (message,) = messages
            assert BLOCKS[1] in message
            assert BLOCKS[0] not in message
            assert "below 65504 for cache='fp16'" in message
        else:
            assert messages == []
            assert denoiser(**case.inputs(1)).sample.isfinite().all()


def test_cache_formats_several_sites_are_named_in_order(prepared):
    case, denoiser = prepared("int8")
    inputs = case.inputs(0)
    inputs["hidden_states"][0, 0, 0, 0] = torch.inf
    (message,) = warned(denoiser, inputs)
    assert message.startswith("2 of 2 sites kept NaN or infinity")
    assert ", ".join(BLOCKS) in message


def test_cache_formats_flag_of_one_stream_is_told_once(prepared):
    case, denoiser = prepared("int8")
    counts = []
    for step in range(2):
        for name in ("cond", "uncond"):
            inputs = case.inputs(step)
            if name == "uncond":
                inputs["hidden_states"][:] = torch.nan
            with denoiser.cache_context(name, step_index=step):
                counts.append(len(warned(denoiser, inputs)))
    assert counts == [0, 1, 0, 0]


def test_cache_formats_reset_clears_the_flags(prepared):
    case, denoiser = prepared("int8")
    assert warned_steps(denoiser, case, bad=[0], steps=1) == [1]
    denoiser.reset()
    assert warned_steps(denoiser, case, steps=2) == [0, 0]


@pytest.fixture
def remote(prepared):
    """A denoiser that takes its device for one where asking waits."""
    case, denoiser = prepared("int8", actions="SRSR")
    denoiser.program._is_on_host = False
    return case, denoiser


def test_cache_formats_flags_of_a_device_are_asked_at_the_end(remote):
    case, denoiser = remote
    assert warned_steps(denoiser, case, bad=[0]) == [0, 0, 0, 1]
    assert warned_steps(denoiser, case, bad=[0, 2], seed=1) == [0, 0, 0, 1]
    assert warned_steps(denoiser, case, seed=2) == [0, 0, 0, 0]


def test_cache_formats_flags_of_a_broken_off_trajectory_are_told_by_the_next(remote):
    case, denoiser = remote
    assert warned_steps(denoiser, case, bad=[0], steps=2) == [0, 0]
    assert warned_steps(denoiser, case, seed=1) == [1, 0, 0, 0]
    assert warned_steps(denoiser, case, seed=2) == [0, 0, 0, 0]


def test_cache_formats_flags_of_a_broken_off_trajectory_are_told_by_reset(remote):
    case, denoiser = remote
    assert warned_steps(denoiser, case, bad=[0], steps=2) == [0, 0]
    with pytest.warns(UserWarning, match=BLOCKS[0]):
        denoiser.reset()
    assert warned_steps(denoiser, case) == [0, 0, 0, 0]


# ---- devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("cache", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cache_formats_work_on_the_host(cache, dtype):
    for dims in (1, 2, 3, 4):
        spec = TensorSpec.of(torch.empty((3,) * dims, dtype=dtype))
        assert cache_support.why_not(FORMATS[cache], spec) is None


@pytest.mark.parametrize(
    ("cache", "keep"),
    slow_but(
        ("fp16", "output"),
        ("int8", "kv"),
        of=[*((cache, "output") for cache in FORMATS), ("int8", "kv")],
    ),
)
def test_cache_formats_on_the_meta_device_take_the_same_bytes(prepared, cache, keep):
    _, denoiser = prepared(cache, keep)
    meta = make_dit(layers=2)
    meta.model.to("meta")
    inputs = {name: value.to("meta") for name, value in meta.inputs(0).items()}
    planned = transformed(meta, cache, keep)
    planned.prepare(**inputs)
    assert planned.cache_bytes == denoiser.cache_bytes
    assert {spec.device.type for spec in planned.program.slot_specs.values()} == {"meta"}
    for step in range(2):
        mine, expected = planned.row_graph(step), denoiser.row_graph(step)
        assert [n.target for n in mine.graph.nodes] == [n.target for n in expected.graph.nodes]
    with planned.cache_context("cond", step_index=0):
        assert planned(**inputs).sample.is_meta


@pytest.fixture
def capability(monkeypatch):
    """Sets the compute capability that a GPU is said to have."""

    def told(*found):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: found)

    return told


CUDA = TensorSpec((2, 3), (3, 1), torch.float32, torch.device("cuda"))


@pytest.mark.parametrize("found", [(7, 5), (8, 0), (8, 6)])
def test_cache_formats_fp8_on_an_older_gpu_names_the_alternative(capability, found):
    capability(*found)
    with FakeTensorMode(), pytest.raises(dqar_fx.OptionError) as raised:
        cache_support.refuse_format(FORMATS["fp8"], [CUDA])
    message = str(raised.value)
    assert message.startswith("cache='fp8' cannot be used on cuda: compute capability")
    assert f"{found} is below (8, 9)" in message
    assert "Use cache='int8', which takes as few bytes" in message


@pytest.mark.parametrize(
    ("cache", "found"), [("fp8", (8, 9)), ("fp8", (9, 0)), ("int8", (7, 5))]
)
def test_cache_formats_that_a_gpu_has_are_not_refused_for_its_age(capability, cache, found):
    capability(*found)
    with FakeTensorMode():  # without a GPU, writing fails all the same
        assert "capability" not in (cache_support.why_not(FORMATS[cache], CUDA) or "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no such conversion\nat line 3"), "no such conversion"),
        (NotImplementedError(), "NotImplementedError"),
        (TypeError("no such dtype"), "no such dtype"),
    ],
)
def test_cache_formats_what_a_device_says_is_passed_on(monkeypatch, error, reason):
    def refuse(*_):
        raise error

    monkeypatch.setattr(type(FORMATS["fp8"]), "write", refuse)
    with pytest.raises(dqar_fx.OptionError) as raised:
        cache_support.refuse_format(FORMATS["fp8"], [TensorSpec.of(torch.empty(2, 3))])
    message = f"cache='fp8' cannot be used on cpu: {reason}. Use cache='int8'"
    assert str(raised.value).startswith(message)


def test_cache_formats_that_a_device_lacks_are_refused_before_anything_runs(monkeypatch):
    case = make_dit(layers=2)
    monkeypatch.setattr(cache_support, "why_not", lambda *_: "too old")
    denoiser = transformed(case, "fp8")
    with pytest.raises(dqar_fx.OptionError, match=r"on cpu: too old\. Use cache='int8'"):
        denoiser.prepare(**case.inputs(0))
