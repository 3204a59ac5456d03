"""Adapters are inputs of captured graphs: another one, or another scale, is only written."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from peft import LoHaConfig, LoraConfig, get_peft_model_state_dict

import dqar_fx
from dqar_fx import DqarError, Guidance, Schedule
from dqar_fx.capture.adapters import ModelInputs, find_layers, only_active_adapters
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import seeded
from tests.helpers.sd3_pipeline import make_tiny_sd3, put_in_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
    pytest.mark.filterwarnings("ignore:Adapter .* was active"),
]
STEPS = 6
COMPUTE, EVERY_THIRD = Schedule.compute_all(STEPS), Schedule.interval(STEPS, 3)
PLACES = ["to_q", "to_v", "norm1.linear", "context_embedder", "ff.net.2"]
GRAPHS = []


def counted(gm, _):
    """A backend that runs graphs as they are, and counts them."""
    GRAPHS.append(len(gm.graph.nodes))
    return gm.forward


WAYS = {
    "eager": {},
    "regional": {"compile": {"backend": counted}},
    "blocks": {"capture": "blocks"},
}


def inputs(step=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    latent = torch.randn(1, 4, 4, 4, generator=generator)
    given = (latent, seeded(1, 4, 16), seeded(1, 24))
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
    tensors = {name: value.to(dtype) for name, value in zip(names, given, strict=True)}
    return {**tensors, "timestep": torch.tensor([900.0 - 100 * step])}


def make_pipe(*names, dtype=torch.float32, rank=4, config=LoraConfig):
    """A pipeline with SD3 and adapters; the last one is active."""
    pipe = put_in_pipeline(make_tiny_sd3(4).to(dtype))
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        given = {"target_modules": PLACES, "r": rank}
        if config is LoraConfig:
            given["init_lora_weights"] = False
        pipe.transformer.add_adapter(config(**given), name)
    torch.manual_seed(7)
    for name, parameter in pipe.transformer.named_parameters():
        if "hada" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return pipe


def twice(pipe, schedule=COMPUTE, **options):
    """A pipeline, and a copy of it whose model is transformed."""
    other = copy.deepcopy(pipe)
    other.transformer = dqar_fx.transform(other.transformer, schedule, **options)
    return pipe, other


def check(pipes, step=0, **more):
    """Both give the same at a step; what the copy gives."""
    plain, transformed = (pipe.transformer for pipe in pipes)
    given = inputs(step, plain.dtype)
    with torch.no_grad():
        found = transformed(**given, **more).sample
        assert torch.equal(found, plain(**given, **more).sample)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_adapters_of_one_structure_share_what_was_captured(way):
    pipes = twice(make_pipe("a", "b", "c"), **WAYS[way])
    check(pipes)
    program, graphs = pipes[1].transformer.program, len(GRAPHS)
    given = [("b", 0.3), ("a", 1.0), ("c", 0.0), ("a", 0.7), ("b", 1.0)]
    found = []
    for step, (name, scale) in enumerate(given):
        for pipe in pipes:
            pipe.set_adapters([name], [scale])
        found.append(check(pipes, step))
    assert pipes[1].transformer.program is program
    assert len(GRAPHS) == graphs
    assert not torch.equal(found[1], found[3])


@pytest.mark.parametrize("way", WAYS)
def test_fifty_scales_in_a_row_compile_nothing(way):
    pipes = twice(make_pipe("a"), **WAYS[way])
    check(pipes)
    program, graphs = pipes[1].transformer.program, len(GRAPHS)
    for number in range(50):
        scale = {"scale": number / 25}
        if number % 10:  # the original divides by a scale again, which is not exact
            with torch.no_grad():
                pipes[1].transformer(**inputs(), joint_attention_kwargs=scale)
        else:
            fresh = copy.deepcopy(pipes[0]), pipes[1]
            check(fresh, joint_attention_kwargs=scale)
    check(pipes)
    assert pipes[1].transformer.program is program
    assert len(GRAPHS) == graphs
    assert len(pipes[1].transformer.captured_programs()) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_scale_is_as_exact_as_a_number(dtype):
    pipes = twice(make_pipe("a", dtype=dtype))
    for scale in (1.0, 0.3, 1 / 3, 2.7):
        for pipe in pipes:
            pipe.set_adapters(["a"], [scale])
        check(pipes)


def test_a_ramp_of_scales_is_followed_while_outputs_are_reused():
    plain, other = twice(make_pipe("a"), EVERY_THIRD)
    for compile in (None, {"backend": "eager"}):
        denoiser = other.transformer
        if compile:
            denoiser = dqar_fx.transform(
                plain.transformer, EVERY_THIRD, compile=compile, conditioning="trajectory"
            )
        oracle = Oracle(copy.deepcopy(plain.transformer))
        denoiser.attach_timesteps(torch.tensor([900.0 - 100 * step for step in range(STEPS)]))
        for step in range(STEPS):
            given = {**inputs(step), "joint_attention_kwargs": {"scale": 1 - 0.1 * step}}
            wanted = oracle(EVERY_THIRD.resolve(range(2)).actions[step], **given)
            with torch.no_grad():
                assert (denoiser(**given).sample - wanted).abs().max() < 1e-5
        assert denoiser.runs[-1].num_reused == denoiser.runs[-1].num_promised > 0


def test_another_structure_is_captured_once():
    pipes = twice(make_pipe("a", "b"))
    denoiser = pipes[1].transformer
    for pipe in pipes:
        torch.manual_seed(3)
        config = LoraConfig(r=8, target_modules=PLACES, init_lora_weights=False)
        pipe.transformer.add_adapter(config, "wide")
    changes = [("a",), ("wide",), ("a", "b"), ("b", "wide"), ("b", "a"), ("wide",), ("b",)]
    for names in changes:
        for pipe in pipes:
            pipe.set_adapters(list(names), [0.5] * len(names))
        check(pipes)
    assert len(denoiser.captured_programs()) == 4  # of ranks 4, 8, 4 and 4, 4 and 8


def test_adapters_that_are_merged_or_disabled_are_those_of_none():
    pipes = twice(make_pipe("a"))
    denoiser = pipes[1].transformer
    actions = [
        lambda pipe: pipe.disable_lora(),
        lambda pipe: pipe.enable_lora(),
        lambda pipe: pipe.fuse_lora(components=["transformer"], lora_scale=0.5),
        lambda pipe: pipe.unfuse_lora(components=["transformer"]),
        lambda pipe: pipe.unload_lora_weights(),
    ]
    for act in [None, *actions]:
        for pipe in pipes if act else ():
            act(pipe)
        check(pipes)
    assert len(denoiser.captured_programs()) == 3  # with one, with none, and without layers


def test_weights_that_are_swapped_in_place_are_followed():
    pipes = twice(make_pipe())
    for pipe in pipes:
        pipe.transformer.enable_lora_hotswap(target_rank=8)
    programs = []
    for seed, rank in enumerate((4, 8, 2)):
        donor = make_pipe("donor", rank=rank).transformer
        state = get_peft_model_state_dict(donor, adapter_name="donor")
        state = {f"transformer.{name}": (1 + seed) * value for name, value in state.items()}
        for pipe in pipes:
            pipe.load_lora_weights(dict(state), adapter_name="own", hotswap=seed > 0)
        check(pipes)
        programs.append(pipes[1].transformer.program)
    assert programs[1] is programs[2]


def test_adapters_of_another_kind_are_captured_with_their_scales():
    pipes = twice(make_pipe("a", config=LoHaConfig))
    check(pipes)
    for pipe in pipes:
        pipe.transformer.set_adapters(["a"], [0.25])
    check(pipes)


def test_denoisers_that_share_graphs_have_adapters_of_their_own():
    pipes = twice(make_pipe("a", "b"))
    check(pipes)
    first = pipes[1].transformer
    second = first.with_schedule(Schedule.interval(STEPS, 2))
    plain = [copy.deepcopy(pipes[0].transformer) for _ in range(2)]
    for each, denoiser, name in zip(plain, (first, second), ("a", "b"), strict=True):
        each.set_adapters([name], [0.4])
        denoiser.set_adapters([name], [0.4])
    for step in range(2):
        for each, denoiser in zip(plain, (first, second), strict=True):
            denoiser.reset()
            with torch.no_grad():
                assert torch.equal(
                    denoiser(**inputs(step)).sample, each(**inputs(step)).sample
                )
    assert second.program.captured is first.program.captured


def test_both_streams_of_guidance_follow():
    plain = make_pipe("a").transformer
    denoiser = dqar_fx.transform(
        plain, COMPUTE, guidance=Guidance(unconditional=EVERY_THIRD, stream="no")
    )
    prompts = {"yes": seeded(1, 4, 16), "no": torch.zeros(1, 4, 16)}
    tables = {"yes": COMPUTE, "no": EVERY_THIRD}
    for scale in (1.0, 0.3):
        for each in (plain, denoiser):
            each.set_adapters(["a"], [scale])
        oracles = {name: Oracle(copy.deepcopy(plain)) for name in prompts}
        for step in range(3):
            for name, prompt in prompts.items():
                given = {**inputs(step), "encoder_hidden_states": prompt}
                wanted = oracles[name](tables[name].resolve(range(2)).actions[step], **given)
                with torch.no_grad(), denoiser.cache_context(name):
                    assert torch.equal(denoiser(**given).sample, wanted)
        denoiser.reset()


@pytest.mark.parametrize("kind", [int, float, np.float64, np.float32, torch.tensor])
def test_a_scale_is_any_number(kind):
    pipes = twice(make_pipe("a"))
    for scale in (2, 0, 1) if kind is int else (2.0, 0.25, 1.0):
        fresh = copy.deepcopy(pipes[0]), pipes[1]
        wanted = check(fresh, joint_attention_kwargs={"scale": float(scale)})
        given = {"joint_attention_kwargs": {"scale": kind(scale)}}
        with torch.no_grad():
            assert torch.equal(pipes[1].transformer(**inputs(), **given).sample, wanted)
    assert len(pipes[1].transformer.captured_programs()) == 1


@pytest.mark.parametrize(
    "derive",
    [
        lambda denoiser: denoiser.with_schedule(Schedule.interval(STEPS, 2)),
        copy.deepcopy,
        lambda denoiser: pickle.loads(pickle.dumps(denoiser)),
    ],
)
def test_what_is_made_of_a_denoiser_has_no_scale_of_a_call(derive):
    pipes = twice(make_pipe("a"))
    half = {"joint_attention_kwargs": {"scale": 0.5}}
    check((copy.deepcopy(pipes[0]), pipes[1]), **half)
    pipes[1].transformer = derive(pipes[1].transformer)
    check(pipes)
    check(pipes, **half)


@pytest.mark.parametrize("release", ["host", "disk"])
@pytest.mark.filterwarnings("ignore:release='host' frees nothing")
def test_scales_reach_adapters_of_released_conditioning(release):
    plain = make_pipe("a").transformer
    denoiser = dqar_fx.transform(plain, COMPUTE, release=release)
    denoiser.attach_timesteps(torch.tensor([900.0 - 100 * step for step in range(STEPS)]))
    for scale in (1.0, 0.5, 0.25, 1.0):
        given = {"joint_attention_kwargs": {"scale": scale}}
        for step in range(2):
            with torch.no_grad():
                wanted = copy.deepcopy(plain)(**inputs(step), **given).sample
                found = denoiser(**inputs(step), **given).sample
            assert (found - wanted).abs().max() < 1e-5


def test_adapters_that_are_fused_and_disabled_leave_the_weights_once():
    pipes = twice(make_pipe("a"))
    for pipe in pipes:
        pipe.fuse_lora(components=["transformer"])
        pipe.disable_lora()
    for _ in range(3):
        check(pipes)
    model = pipes[0].transformer
    for each in find_layers(model):
        each[1].merged_adapters = ["a"]
    with pytest.raises(DqarError, match="merged into weights, and disabled"):
        dqar_fx.transform(model, COMPUTE)


@pytest.mark.parametrize(
    "act",
    [
        lambda pipe: pipe.set_adapters(["a"], [0.3]),
        lambda pipe: pipe.disable_lora(),
        lambda pipe: pipe.fuse_lora(components=["transformer"]),
        lambda pipe: pipe.fuse_lora(components=["transformer"], safe_fusing=True),
    ],
)
def test_a_model_that_is_given_back_has_the_adapters_as_they_are(act):
    pipes = make_pipe("a", "b"), make_pipe("a", "b")
    dqar_fx.enable(pipes[1], COMPUTE)
    for pipe in pipes:
        act(pipe)
    check(pipes)
    dqar_fx.disable(pipes[1])
    check(pipes)
    for pipe in pipes:
        pipe.unload_lora_weights()
    check(pipes)


def test_a_forward_that_scales_by_itself_is_captured_for_each_scale():
    class Scaling(type(make_tiny_sd3(4))):
        def forward(self, hidden_states, attention_kwargs=None, **given):
            scale = (attention_kwargs or {}).get("scale", 1.0)
            scale_lora_layers(self, scale)
            try:
                return super().forward(hidden_states, **given)
            finally:
                unscale_lora_layers(self, scale)

    plain = make_pipe("a")
    model = copy.deepcopy(plain.transformer)
    model.__class__ = Scaling
    denoiser = dqar_fx.transform(model, COMPUTE)
    for scale in (1.0, 0.5, 0.25):
        given = {"joint_attention_kwargs": {"scale": scale}}
        with torch.no_grad():
            wanted = copy.deepcopy(plain.transformer)(**inputs(), **given).sample
            found = denoiser(**inputs(), attention_kwargs={"scale": scale}).sample
        assert torch.equal(found, wanted)
    blocks = dqar_fx.transform(model, COMPUTE, capture="blocks")
    with pytest.raises(DqarError, match="sets the scale of its adapters by itself"):
        blocks(**inputs(), attention_kwargs={"scale": 0.5})


def test_threads_that_look_at_a_model_leave_it_as_it_was():
    model = make_pipe("a", "b").transformer
    wanted = ModelInputs.of(model)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: ModelInputs.of(model), range(40)))
    for each in found:
        assert each.scales == wanted.scales
        assert list(each.tensors) == list(wanted.tensors)
    assert model.transformer_blocks[0].attn.to_q.active_adapters == ["b"]


def test_a_model_is_left_as_it_was():
    model = make_pipe("a", "b").transformer
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    kinds = {path: type(module) for path, module in model.named_modules()}
    names = list(dict(model.named_parameters()))
    with only_active_adapters(model):
        inner = dict(model.named_parameters())
        assert any("adapter_0" in name for name in inner)
        assert not any(".a." in name or ".b." in name for name in inner)
    given = ModelInputs.of(model, factor=0.5)
    assert set(given.scales.values()) == {1.0}  # alpha 8 over rank 4, halved
    assert list(dict(model.named_parameters())) == names
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    for path, module in model.named_modules():
        held = {name: value for name, value in vars(module).items() if name in before[path]}
        assert held.keys() == before[path].keys()


def test_writes_to_a_model_are_followed_below_adapters():
    plain = make_pipe().transformer
    denoiser, other = dqar_fx.transform(plain, COMPUTE), copy.deepcopy(plain)
    for each in (denoiser, other):
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=PLACES, init_lora_weights=False)
        each.add_adapter(config, "a")
    for step in range(2):
        with torch.no_grad():
            assert torch.equal(denoiser(**inputs(step)).sample, other(**inputs(step)).sample)
        denoiser.reset()
        written = plain.transformer_blocks[0].attn.to_q.weight
        written.data = written.data * 0.5
        other.transformer_blocks[0].attn.to_q.base_layer.weight.data.mul_(0.5)
