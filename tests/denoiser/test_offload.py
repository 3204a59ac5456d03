"""Hooks of accelerate that offload: as one they work, module by module they are refused."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    CpuOffload,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting

import dqar_fx
from dqar_fx import CaptureError, DqarError, Schedule
from tests.helpers.models import make_dit
from tests.helpers.sd3_pipeline import generate, make_tiny_sd3, put_in_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
CPU = torch.device("cpu")
COMPUTE = Schedule.compute_all(4)


class Noted(AlignDevicesHook):
    """Says how often it ran, and around what."""

    def __init__(self):
        super().__init__(CPU, io_same_device=True)
        self.modules = []

    def pre_forward(self, module, *args, **kwargs):
        self.modules.append(module)
        return super().pre_forward(module, *args, **kwargs)


AS_ONE = {
    "cpu_offload_with_hook": lambda m: cpu_offload_with_hook(m, execution_device=CPU),
    "CpuOffload": lambda m: add_hook_to_module(m, CpuOffload(CPU)),
    "AlignDevicesHook": lambda m: add_hook_to_module(m, AlignDevicesHook(CPU)),
    "SequentialHook": lambda m: add_hook_to_module(
        m, SequentialHook(CpuOffload(CPU), Noted())
    ),
}
IN_PARTS = {
    "cpu_offload": lambda m: cpu_offload(m, execution_device=CPU),
    "dispatch_model": lambda m: dispatch_model(m, {"": "cpu"}, force_hooks=True),
    "root": lambda m: add_hook_to_module(
        m, AlignDevicesHook(CPU, offload=True, place_submodules=True)
    ),
}


@pytest.fixture
def case():
    return make_dit(layers=2)


def run(model, case, step=0):
    with torch.no_grad():
        return model(**case.inputs(step)).sample


@pytest.fixture(scope="module")
def wanted():
    case = make_dit(layers=2)
    return [run(case.model, case, step) for step in range(2)]


def check(denoiser, case, wanted):
    for step, each in enumerate(wanted):
        assert torch.equal(run(denoiser, case, step), each)


# ---- as one ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AS_ONE)
def test_a_hook_around_a_model_is_around_its_denoiser(name, case, wanted, captures):
    AS_ONE[name](case.model)
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    assert denoiser._hf_hook is case.model._hf_hook
    assert not hasattr(denoiser.model, "_hf_hook")
    check(denoiser, case, wanted)
    assert len(captures) == 1
    check(case.model, case, wanted)


def test_a_hook_around_a_model_runs_once_a_call(case, wanted):
    hook = Noted()
    add_hook_to_module(case.model, hook)
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    check(denoiser, case, wanted)
    assert hook.modules == [denoiser, denoiser]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("name", AS_ONE)
def test_a_hook_around_a_denoiser_comes_and_goes(name, is_late, case, wanted):
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    if is_late:
        run(denoiser, case)
    AS_ONE[name](denoiser)
    denoiser.reset()
    check(denoiser, case, wanted)
    remove_hook_from_module(denoiser, recurse=True)
    denoiser.reset()
    check(denoiser, case, wanted)


def test_released_weights_and_a_hook_go_together(case):
    outputs = []
    for is_hooked in (False, True):
        denoiser = dqar_fx.transform(case.model, COMPUTE, release="disk")
        denoiser.attach_timesteps(torch.tensor([900.0, 890.0, 880.0, 870.0]))
        if is_hooked:
            AS_ONE["CpuOffload"](denoiser)
        outputs.append([run(denoiser, case, step) for step in range(4)])
        assert denoiser.released_bytes > 0
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)


def hooked_models(pipe):
    return [hook.model for hook in pipe._all_hooks]


@pytest.mark.parametrize("is_first", [False, True])
def test_model_offload_of_a_pipeline_goes_with_the_denoiser(is_first):
    model = make_tiny_sd3(4)
    pipe = put_in_pipeline(model)
    latents = generate(pipe)
    if is_first:
        pipe.enable_model_cpu_offload(device="cpu")
    dqar_fx.enable(pipe, Schedule.compute_all(3))
    if not is_first:
        pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # after each request the pipeline puts its hooks anew
        assert hooked_models(pipe) == [pipe.transformer]
        assert isinstance(pipe.transformer._hf_hook, CpuOffload)
        assert torch.equal(generate(pipe), latents)
    dqar_fx.disable(pipe)
    assert hooked_models(pipe) == [model]
    assert isinstance(model._hf_hook, CpuOffload)
    assert torch.equal(generate(pipe), latents)


def test_a_hook_that_went_meanwhile_is_not_given_back():
    model = make_tiny_sd3(4)
    pipe = put_in_pipeline(model)
    latents = generate(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    dqar_fx.enable(pipe, Schedule.compute_all(3))
    pipe.remove_all_hooks()
    dqar_fx.disable(pipe)
    assert not hasattr(model, "_hf_hook")
    assert torch.equal(generate(pipe), latents)


# ---- in parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_PARTS)
def test_offload_in_parts_is_refused_by_name_before_transform(name, case):
    IN_PARTS[name](case.model)
    with pytest.raises(DqarError, match=r"AlignDevicesHook.*remove_all_hooks\(\)"):
        dqar_fx.transform(case.model, COMPUTE, capture="graph")


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("name", IN_PARTS)
def test_offload_in_parts_of_a_denoiser_is_refused_until_it_goes(name, is_late, case, wanted):
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    if is_late:
        check(denoiser, case, wanted)
    IN_PARTS[name](denoiser)
    for _ in range(2):
        with pytest.raises(DqarError, match=r"AlignDevicesHook.*remove_all_hooks\(\)"):
            run(denoiser, case)
    remove_hook_from_module(denoiser, recurse=True)
    denoiser.reset()
    check(denoiser, case, wanted)
    assert not any(parameter.is_meta for parameter in denoiser.parameters())


def test_a_model_that_is_offloaded_later_leaves_its_denoiser_as_it_was(case, wanted):
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    run(denoiser, case)
    IN_PARTS["cpu_offload"](case.model)
    denoiser.reset()
    check(denoiser, case, wanted)
    assert any(parameter.is_meta for parameter in case.model.parameters())


@pytest.mark.parametrize("capture", ["graph", "blocks"])
def test_parameters_without_values_are_not_computed_with(capture, case, wanted):
    denoiser = dqar_fx.transform(case.model, COMPUTE, capture=capture)
    check(denoiser, case, wanted)
    denoiser.to("meta")
    for _ in range(2):
        with pytest.raises(CaptureError, match=r"pos_embed.* are on the meta device"):
            run(denoiser, case)


def group_offload(model, how):
    per_group = {"num_blocks_per_group": 1} if how == "block_level" else {}
    apply_group_offloading(model, CPU, CPU, offload_type=how, **per_group)


LAYERS = {
    "block_level": group_offload,
    "leaf_level": group_offload,
    "casting": lambda model, _: apply_layerwise_casting(model, torch.bfloat16, torch.float32),
}


@pytest.mark.parametrize("capture", ["auto", "blocks"])
@pytest.mark.parametrize("name", LAYERS)
def test_hooks_of_diffusers_that_move_layers_say_what_to_do(name, capture, case):
    denoiser = dqar_fx.transform(make_dit(layers=2).model, COMPUTE, capture=capture)
    for model, call in (
        (case.model, lambda: dqar_fx.transform(case.model, COMPUTE, capture="graph")),
        (denoiser, lambda: run(denoiser, case)),
    ):
        LAYERS[name](model, name)
        what = r"to\(dtype\)" if name == "casting" else r"release='host'"
        with pytest.raises(DqarError, match=rf"hook of diffusers .*anew.*{what}"):
            call()
