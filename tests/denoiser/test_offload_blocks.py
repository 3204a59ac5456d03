"""Weights that come and go part by part: values, and what is there while a block runs.

On a CPU nothing moves. So weights that diffusers has taken away are NaN here, and those that
accelerate has taken away are on the meta device: what is read while it is away is seen.
"""

import gc
import math

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import (
    apply_group_offloading,
    apply_layerwise_casting,
    group_offloading,
)
from diffusers.hooks.layerwise_casting import LayerwiseCastingHook
from torch._subclasses.fake_tensor import FakeTensor

import dqar_fx
from dqar_fx import DqarError, OptionError, Schedule, SiteError
from dqar_fx.capture.offloaded import OffloadedTensor
from tests.helpers.hook_oracle import Oracle, ResidualOracle
from tests.helpers.models import make_dit, make_flux, make_sd3
from tests.helpers.sd3_pipeline import generate, make_tiny_sd3, put_in_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
CPU = torch.device("cpu")
STEPS = 4
BLOCK = {"offload_type": "block_level", "num_blocks_per_group": 1}
HOOKS = {
    "groups of 1": lambda m: apply_group_offloading(m, CPU, CPU, **BLOCK),
    "groups of 2": lambda m: apply_group_offloading(
        m, CPU, CPU, **BLOCK | {"num_blocks_per_group": 2}
    ),
    "leaves": lambda m: apply_group_offloading(m, CPU, CPU, offload_type="leaf_level"),
    "cpu_offload": lambda m: cpu_offload(m, execution_device=CPU, offload_buffers=True),
    "dispatch_model": lambda m: dispatch_model(m, {"": "cpu"}, force_hooks=True),
    "casting": lambda m: apply_layerwise_casting(m, torch.float8_e4m3fn, torch.float32),
    "root": lambda m: add_hook_to_module(
        m, AlignDevicesHook(CPU, offload=True, place_submodules=True)
    ),
}
MODELS = {"dit": lambda: make_dit(layers=3), "flux": make_flux, "sd3": make_sd3}
CASES = [
    *(("sd3", how) for how in HOOKS),
    *(("dit", how) for how in ("leaves", "cpu_offload")),  # calls a part of a block past it
    *(("flux", how) for how in ("groups of 1", "cpu_offload")),
    *((model, "casting") for model in ("dit", "flux")),
]


class Groups:
    """Follows groups of diffusers: their weights are NaN while they are away."""

    def __init__(self, monkeypatch):
        self.events, self.away, self.there, self.peak = [], {}, {}, 0
        kind = group_offloading.ModuleGroup
        monkeypatch.setattr(kind, "onload_", lambda group: self.bring(find_weights(group)))
        monkeypatch.setattr(kind, "offload_", lambda group: self.take(find_weights(group)))

    def bring(self, weights):
        for each in weights:
            each.data = self.away.pop(id(each))
            self.there[id(each)] = each.nbytes
        self.events.append(("in", tuple(map(id, weights))))
        self.peak = max(self.peak, sum(self.there.values()))

    def take(self, weights):
        for each in weights:
            if self.there.pop(id(each), None) or id(each) not in self.away:
                self.away[id(each)] = each.data
                each.data = torch.full_like(each, math.nan)
        self.events.append(("out", tuple(map(id, weights))))

    def take_events(self):
        """What came and went since this was asked last, and the most bytes at a time."""
        events, self.events = self.events, []
        peak, self.peak = self.peak, 0
        assert not self.there
        return events, peak


def find_weights(group):
    held = [each for module in group.modules for each in module.parameters()]
    return list({id(each): each for each in (*held, *group.parameters)}.values())


class Leaves:
    """Follows hooks of accelerate: which modules they bring in, with how many bytes."""

    def __init__(self, monkeypatch):
        self.brought, self.bytes, self.peak = [], 0, 0
        before, after = AlignDevicesHook.pre_forward, AlignDevicesHook.post_forward

        def pre_forward(hook, module, *args, **kwargs):
            found = before(hook, module, *args, **kwargs)
            if hook.offload:
                self.brought.append(module)
                self.bytes += count_own(module)
                self.peak = max(self.peak, self.bytes)
            return found

        def post_forward(hook, module, output):
            self.bytes -= count_own(module) if hook.offload else 0
            return after(hook, module, output)

        monkeypatch.setattr(AlignDevicesHook, "pre_forward", pre_forward)
        monkeypatch.setattr(AlignDevicesHook, "post_forward", post_forward)

    def take(self):
        """The modules since this was asked last, and the most bytes at a time."""
        assert self.bytes == 0
        brought, self.brought = self.brought, []
        peak, self.peak = self.peak, 0
        return brought, peak


def count_own(module):
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(each.nbytes for each in tensors if not each.is_meta)


def count_below(module):
    return sum(each.nbytes for each in module.state_dict().values())


def sample(model, inputs):
    with torch.no_grad():
        return model(**inputs).sample


# ---- values ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "how"), CASES)
@pytest.mark.parametrize("sites", ["attention", "block"])
def test_values_of_an_offloaded_model_equal_hooks_on_it(name, how, sites, monkeypatch):
    groups, case = Groups(monkeypatch), MODELS[name]()
    HOOKS[how](case.model)
    schedule = Schedule.interval(STEPS, 2)
    denoiser = dqar_fx.transform(case.model, schedule, capture="blocks", sites=sites)
    denoiser.prepare(**case.inputs(0))
    of_blocks = sites == "block"
    oracle = ResidualOracle(case.model, denoiser.table) if of_blocks else Oracle(case.model)
    for step in range(STEPS):
        given = step if of_blocks else denoiser.table.actions[step]
        inputs = case.inputs(step)
        assert torch.equal(denoiser(**inputs).sample, oracle(given, **inputs)), step
    assert not groups.there


@pytest.fixture(scope="module")
def wanted():
    """What an SD3 whose weights stay gives at each step."""
    case = make_sd3()
    return [sample(case.model, case.inputs(step)) for step in range(STEPS)]


def test_equal_blocks_share_what_is_compiled_and_nothing_is_compiled_again():
    case, denoisers = make_dit(layers=3), []
    for hook in (lambda _: None, HOOKS["cpu_offload"]):
        hook(case.model)
        denoisers.append(
            dqar_fx.transform(
                case.model,
                Schedule.compute_all(STEPS),
                capture="blocks",
                compile={"unit": "regional", "backend": "eager"},
            )
        )
    plain, denoiser = denoisers
    for each in denoisers:
        sample(each, case.inputs(0))
    assert len(plain.program.variants) == len(denoiser.program.variants)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(1, STEPS):
            inputs = case.inputs(step)
            assert torch.equal(sample(denoiser, inputs), sample(plain, inputs))


def test_weights_that_are_written_to_are_those_of_the_next_run():
    case = make_sd3()
    HOOKS["groups of 1"](case.model)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(2), capture="blocks")
    before = sample(denoiser, case.inputs(0))
    for weight in case.model.transformer_blocks.parameters():
        weight.data.mul_(1.25)
    denoiser.reset()
    after = sample(denoiser, case.inputs(0))
    assert torch.equal(after, sample(case.model, case.inputs(0)))
    assert not torch.equal(after, before)


# ---- what is there, and when -------------------------------------------------------------


@pytest.mark.parametrize("how", ["groups of 1", "groups of 2"])
def test_groups_come_and_go_as_they_do_without_a_denoiser(how, monkeypatch):
    groups, case = Groups(monkeypatch), make_sd3()
    HOOKS[how](case.model)
    groups.take_events()
    sample(case.model, case.inputs(0))
    events, peak = groups.take_events()
    assert 0 < peak < sum(each.nbytes for each in case.model.parameters())
    for options in ({}, {"sites": "block"}):
        denoiser = dqar_fx.transform(
            case.model, Schedule.interval(2, 2), capture="blocks", **options
        )
        denoiser.prepare(**case.inputs(0))
        assert groups.take_events() == (events, peak)  # once, as the forward itself
        for step in range(2):  # of a reused block, too
            sample(denoiser, case.inputs(step))
            assert groups.take_events() == (events, peak)


def find_in(model, modules, part):
    """How often modules whose path has a part were brought in; paths are the model's."""
    paths = {id(module): path for path, module in model.named_modules()}
    return [path for module in modules if part in (path := paths[id(module)])]


def test_weights_of_leaves_are_there_for_what_reads_them(monkeypatch):
    leaves, case = Leaves(monkeypatch), make_dit(layers=3)
    below = count_below(case.model.transformer_blocks[0])
    root = count_own(case.model)
    HOOKS["cpu_offload"](case.model)
    sample(case.model, case.inputs(0))
    native, largest = leaves.take()
    denoiser = dqar_fx.transform(case.model, Schedule.interval(2, 2), capture="blocks")
    denoiser.prepare(**case.inputs(0))
    assert (len(native), largest) == (len(leaves.brought), leaves.peak)
    leaves.take()
    found = []
    for step in range(2):
        sample(denoiser, case.inputs(step))
        brought, peak = leaves.take()
        assert largest <= peak <= root + below
        found.append(sorted(find_in(denoiser.program._host.model, brought, "")))
    assert found[0] == sorted(find_in(case.model, native, ""))  # each as often as natively
    of_attention = [path for path in found[0] if ".attn" in path]
    assert len(of_attention) == 3 * 4
    assert not [path for path in found[1] if ".attn" in path]


def test_weights_of_leaves_of_a_reused_block_stay_away(monkeypatch):
    leaves, case = Leaves(monkeypatch), make_dit(layers=3)
    HOOKS["cpu_offload"](case.model)
    denoiser = dqar_fx.transform(
        case.model, Schedule.interval(2, 2), capture="blocks", sites="block"
    )
    denoiser.prepare(**case.inputs(0))
    counts = []
    for step in range(2):
        leaves.brought.clear()
        sample(denoiser, case.inputs(step))
        host = denoiser.program._host.model
        counts.append(len(find_in(host, leaves.brought, "transformer_blocks.1.")))
    assert counts[0] > 0
    assert counts[1] == 0


def find_address(tensor):
    """Where a tensor's memory is; None for one without, as other tests may leave behind."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return None


@pytest.mark.parametrize("how", ["groups of 1", "cpu_offload"])
def test_nothing_is_held_of_weights_that_went(how, monkeypatch):
    groups, case = Groups(monkeypatch), make_sd3()
    memory = {each.data_ptr(): name for name, each in case.model.named_parameters()}
    HOOKS[how](case.model)
    denoiser = dqar_fx.transform(case.model, Schedule.interval(2, 2), capture="blocks")
    for step in range(2):
        sample(denoiser, case.inputs(step))
    gc.collect()
    plain = (torch.Tensor, torch.nn.Parameter)
    alive = [each for each in gc.get_objects() if type(each) in plain and not each.is_meta]
    addresses = [find_address(each) for each in alive]
    held = [memory[address] for address in addresses if address in memory]
    assert sorted(held) == sorted(memory.values())  # each once, by who offloads
    graph = denoiser.program.captured.gm
    assert all(isinstance(each, FakeTensor) for each in graph.parameters())
    assert len(groups.away) == (len(memory) if how == "groups of 1" else 0)


def test_what_no_hook_brings_in_is_not_computed_with():
    layer = torch.nn.Linear(2, 2, device="meta")
    held = OffloadedTensor.find(torch.nn.ModuleList([layer]), "0.weight", ["0"])
    with pytest.raises(DqarError, match="weight of a Linear is on the meta device"):
        held.read()


def test_weights_that_are_cast_for_a_block_are_stored_after_it(monkeypatch):
    case = make_sd3()
    HOOKS["casting"](case.model)
    stored = {name: each.dtype for name, each in case.model.named_parameters()}
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 2))
    with pytest.warns(match="come and go by hooks .LayerwiseCastingHook of diffusers"):
        found = sample(denoiser, case.inputs(0))
    assert torch.equal(found, sample(case.model, case.inputs(0)))
    assert {name: each.dtype for name, each in denoiser.named_parameters()} == stored
    assert torch.float8_e4m3fn in stored.values()

    cast, most = set(), []
    before, after = LayerwiseCastingHook.pre_forward, LayerwiseCastingHook.post_forward

    def pre_forward(hook, module, *args, **kwargs):
        cast.add(module)
        most.append(len(cast))
        return before(hook, module, *args, **kwargs)

    def post_forward(hook, module, output):
        cast.discard(module)
        return after(hook, module, output)

    monkeypatch.setattr(LayerwiseCastingHook, "pre_forward", pre_forward)
    monkeypatch.setattr(LayerwiseCastingHook, "post_forward", post_forward)
    sample(denoiser, case.inputs(1))
    of_blocks = [len([*block.modules()]) for block in denoiser.transformer_blocks]
    assert not cast
    assert 1 < max(most) <= max(of_blocks)


@pytest.mark.parametrize("how", ["groups of 1", "casting"])
def test_weights_that_hooks_move_are_written_to_but_not_replaced(how):
    case = make_sd3()
    HOOKS[how](case.model)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(STEPS), capture="blocks")
    before = sample(denoiser, case.inputs(0))
    halved = {k: (v.float() / 2).to(v.dtype) for k, v in case.model.state_dict().items()}
    with pytest.raises(DqarError, match=r"into the model that it was made of"):
        denoiser.load_state_dict(halved, assign=True)
    case.model.load_state_dict(halved)
    denoiser.reset()
    found = sample(denoiser, case.inputs(0))
    assert torch.equal(found, sample(case.model, case.inputs(0)))
    assert not torch.equal(found, before)
    case.model.load_state_dict(halved, assign=True)
    with pytest.raises(DqarError, match=r"which a hook moves or casts, was replaced"):
        denoiser.reset()
    with pytest.raises(DqarError, match=r"which a hook moves or casts, was replaced"):
        sample(denoiser, case.inputs(0))


# ---- what is said, and what goes on ------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "hook"),
    [("leaves", "GroupOffloadingHook of diff"), ("cpu_offload", "AlignDevicesHook of acc")],
)
def test_auto_takes_blocks_and_says_why(how, hook, wanted):
    case = make_sd3()
    HOOKS[how](case.model)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(STEPS))
    with pytest.warns(match=rf"one by one, since its weights come and go by .*{hook}"):
        found = sample(denoiser, case.inputs(0))
    assert torch.equal(found, wanted[0])
    explained = denoiser.explain()
    assert explained.tier == "blocks"
    assert hook in explained.why_tier
    assert "inside of a block run around it, so that what it reads is there" in str(explained)
    assert denoiser.device == CPU


OF_PIPELINES = {
    "sequential": lambda pipe: cpu_offload(pipe.transformer, CPU),
    "groups": lambda pipe: pipe.enable_group_offload(CPU, **BLOCK),
}


@pytest.mark.parametrize("how", OF_PIPELINES)
def test_a_pipeline_that_offloads_is_enabled_and_disabled(how):
    model = make_tiny_sd3(4)
    pipe = put_in_pipeline(model)
    latents = generate(pipe)
    OF_PIPELINES[how](pipe)
    hook = vars(model).get("_hf_hook")
    dqar_fx.enable(pipe, Schedule.compute_all(3), capture="blocks")
    for _ in range(2):
        assert torch.equal(generate(pipe), latents)
    (*_, run) = pipe.transformer.runs
    assert len(run.calls) == 3
    dqar_fx.disable(pipe)
    assert pipe.transformer is model
    assert vars(model).get("_hf_hook") is hook
    assert torch.equal(generate(pipe), latents)


@pytest.mark.parametrize("how", OF_PIPELINES)
def test_a_pipeline_that_offloads_later_says_what_to_do(how):
    pipe = dqar_fx.enable(put_in_pipeline(make_tiny_sd3(4)), Schedule.compute_all(3))

    def offload_and_run():
        OF_PIPELINES[how](pipe)
        generate(pipe)

    with pytest.raises(DqarError, match=r"before transform, and capture='blocks'"):
        offload_and_run()


def test_hooks_that_are_taken_away_leave_a_denoiser_of_weights_that_stay(wanted):
    case = make_sd3()
    HOOKS["cpu_offload"](case.model)
    schedule = Schedule.compute_all(STEPS)
    denoiser = dqar_fx.transform(case.model, schedule, capture="blocks")
    for step in range(2):
        assert torch.equal(sample(denoiser, case.inputs(0)), wanted[0])
        if step == 0:
            remove_hook_from_module(denoiser, recurse=True)
            denoiser.reset()
    assert not any(each.is_meta for each in denoiser.parameters())
    assert denoiser.explain().offload == ""


# ---- what does not go together -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"capture": "graph"}, DqarError, "capture='blocks'"),
        ({"release": "host"}, OptionError, "release= asks for too"),
        ({"conditioning": "trajectory"}, OptionError, "conditioning='trajectory'"),
        ({"sites": "span"}, SiteError, "span"),
        ({"compile": "whole"}, OptionError, "compile='whole'"),
        ({"compile": {"prepack": True}}, OptionError, "'prepack'.*come and go"),
        ({"compile": {"mode": "reduce-overhead"}}, OptionError, "CUDA graphs.*come and go"),
    ],
)
@pytest.mark.parametrize("how", ["groups of 1", "cpu_offload"])
def test_what_needs_weights_that_stay_raises_by_name(how, options, error, what):
    model = make_dit(layers=2).model
    HOOKS[how](model)
    with pytest.raises(error, match=what):
        dqar_fx.transform(model, Schedule.compute_all(STEPS), **options)


@pytest.mark.parametrize("how", ["groups of 1", "cpu_offload"])
def test_a_denoiser_of_an_offloaded_model_is_neither_moved_nor_copied(how):
    model = make_dit(layers=2).model
    HOOKS[how](model)
    denoiser = dqar_fx.transform(model, Schedule.compute_all(STEPS), capture="blocks")
    assert denoiser.to(torch.float32) is denoiser
    with pytest.raises(DqarError, match="then offload, then transform"):
        denoiser._apply(lambda tensor: tensor.double())
    with pytest.raises(DqarError, match="before it is offloaded"):
        denoiser.__deepcopy__({})
