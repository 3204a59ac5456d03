"""Methods of the original are applied to the fork, and what runs follows them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPAGPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    SkyReelsV2Transformer3DModel,
    StableDiffusion3PAGPipeline,
)
from torch import nn

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.calibration.observe import ObservedDenoiser
from tests.helpers.models import make_flux, settled

STEPS = 4


class Mean:
    """A processor that gives the mean of its input."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return hidden_states.mean(1, keepdim=True).expand_as(hidden_states)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


class Changing(nn.Module):
    """A model with methods that change it in all ways."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(2))
        self.scale, self.options = 1.0, {"factors": [1.0]}

    def forward(self, hidden_states, timestep):
        x = hidden_states * self.options["factors"][0]
        for block in self.blocks:
            x = x + self.scale * block(x) * torch.cos(timestep)[:, None, None]
        return x

    def set_scale(self, scale):
        self.scale = scale
        return self

    def set_factor(self, factor):
        self.options["factors"][0] = factor

    def write_weight(self, value):
        with torch.no_grad():
            self.blocks[0].qkv.weight.fill_(value)

    def replace_weight(self, value):
        weight = torch.full_like(self.blocks[0].qkv.weight, value)
        self.blocks[0].qkv.weight = nn.Parameter(weight, requires_grad=False)

    def fail_late(self, scale):
        self.scale = scale
        raise KeyError("too late")

    def twice(self, value):
        return 2 * value

    @staticmethod
    def triple(value):
        return 3 * value

    def _set_secretly(self, scale):
        self.scale = scale


def inputs(step):
    generator = torch.Generator().manual_seed(step)
    latent = torch.randn(1, 5, 8, generator=generator)
    return {"hidden_states": latent, "timestep": torch.tensor([900.0 - step])}


def check_equal(model, denoiser):
    denoiser.reset()
    for step in range(STEPS):
        with torch.no_grad():
            assert torch.equal(denoiser(**inputs(step)), model(**inputs(step)))


@pytest.fixture
def model():
    return settled(Changing())


@pytest.fixture
def denoiser(model):
    return dqar_fx.transform(model, Schedule.compute_all(STEPS))


@pytest.mark.parametrize(
    ("name", "values"),
    [("set_scale", (2.0, 1.0)), ("set_factor", (2.0, 1.0)), ("replace_weight", (0.3, 0.2))],
)
def test_a_method_changes_what_runs_and_not_the_original(model, denoiser, name, values):
    untouched, changed = copy.deepcopy(model), copy.deepcopy(model)
    check_equal(model, denoiser)
    for value in values:
        getattr(changed, name)(value)
        getattr(denoiser, name)(value)
        check_equal(changed, denoiser)
    for step in range(STEPS):
        assert torch.equal(model(**inputs(step)), untouched(**inputs(step)))


def test_a_state_that_comes_back_is_not_captured_again(denoiser):
    programs = []
    for scale in (1.0, 2.0, 1.0, 2.0, 1.0):
        denoiser.set_scale(scale)
        programs.append(denoiser.prepare(**inputs(0)))
    assert len(set(programs)) == len(denoiser.captured_programs()) == 2
    assert programs[0] is programs[2] is programs[4]


def test_weights_that_a_method_writes_are_read(model, denoiser):
    check_equal(model, denoiser)
    denoiser.write_weight(0.25)  # tensors are the original's
    check_equal(model, denoiser)


def test_a_method_that_changes_weights_keeps_what_was_captured(model, denoiser):
    program = denoiser.prepare(**inputs(0))
    for change in ("write_weight", "replace_weight"):
        for each in (model, denoiser):
            getattr(each, change)(0.5)
        assert denoiser.prepare(**inputs(0)) is program
        check_equal(model, denoiser)


def test_a_method_that_fails_changes_what_it_changed(model, denoiser):
    check_equal(model, denoiser)
    with pytest.raises(KeyError, match="too late"):
        denoiser.fail_late(2.0)
    check_equal(copy.deepcopy(model).set_scale(2.0), denoiser)


def test_results_of_methods_are_the_originals(model, denoiser):
    program = denoiser.prepare(**inputs(0))
    assert denoiser.twice(2) == 4
    assert denoiser.set_scale(1.0) is denoiser
    assert denoiser.prepare(**inputs(0)) is program


def test_attributes_written_to_are_seen_after_a_reset(model, denoiser):
    check_equal(model, denoiser)
    denoiser.model.scale = 2.0
    check_equal(copy.deepcopy(model).set_scale(2.0), denoiser)


def test_no_method_is_unknown_for_its_name_or_kind(model, denoiser):
    check_equal(model, denoiser)
    denoiser._set_secretly(2.0)
    check_equal(copy.deepcopy(model).set_scale(2.0), denoiser)
    assert denoiser.triple(2) == 6
    assert not hasattr(denoiser, "unknown")


def test_another_schedule_is_for_the_state_that_the_model_is_in(model, denoiser):
    check_equal(model, denoiser)
    denoiser.set_scale(2.0)
    program = denoiser.prepare(**inputs(0))
    other = denoiser.with_schedule(Schedule.interval(STEPS, 2))
    assert [each.captured for each in other.captured_programs()] == [program.captured]
    assert other.prepare(**inputs(0)).captured is program.captured
    other.set_scale(3.0)
    back = other.with_schedule(Schedule.compute_all(STEPS))
    check_equal(copy.deepcopy(model).set_scale(3.0), back)
    check_equal(copy.deepcopy(model).set_scale(2.0), denoiser)


def test_a_copy_has_the_state_of_what_it_is_a_copy_of(model, denoiser):
    denoiser.set_scale(2.0)
    copied = copy.deepcopy(denoiser)
    denoiser.set_scale(3.0)
    check_equal(copy.deepcopy(model).set_scale(2.0), copied)
    copied.set_scale(1.0)
    check_equal(model, copied)


def test_a_conversion_does_not_make_another_state(denoiser):
    denoiser.prepare(**inputs(0))
    denoiser.to(torch.float64)
    given = {name: value.double() for name, value in inputs(0).items()}
    program = denoiser.prepare(**given)
    denoiser.reset()
    assert denoiser.prepare(**given) is program


def test_dynamic_sizes_of_two_states_share_nothing(model):
    denoiser = dqar_fx.transform(
        model, Schedule.compute_all(STEPS), compile={"backend": "eager", "dynamic": True}
    )
    seen = []
    for scale in (1.0, 2.0, 1.0):
        denoiser.set_scale(scale)
        denoiser.prepare(**inputs(0))
        seen.append(denoiser.program.graphs.free)
    assert seen[0] is seen[2] is not seen[1]


def test_what_observes_a_denoiser_follows_methods(model):
    builds, nothing = [], torch.fx.GraphModule({}, torch.fx.Graph())

    def build(given, args, kwargs):
        builds.append(given.scale)
        return SimpleNamespace(captured=SimpleNamespace(reads=None, gm=nothing))

    observed = ObservedDenoiser(model, build)
    for scale in (1.0, 2.0, 1.0):
        observed.set_scale(scale)
        observed._find_program(*torch.utils._pytree.tree_flatten(((), inputs(0))))
    assert builds == [1.0, 2.0]


# ---- methods that stock pipelines call ---------------------------------------------------


def rand(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_pixart_pipeline():
    """PixArt with perturbed attention guidance in its last block, and its inputs."""
    model = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        caption_channels=32,
        cross_attention_dim=24,
    )
    pipe = PixArtSigmaPAGPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval(),
        transformer=settled(model),
        scheduler=DDIMScheduler(),
        pag_applied_layers="blocks.1",
    )
    return pipe, {
        "prompt": None,
        "negative_prompt": None,
        "prompt_attention_mask": torch.ones(1, 7),
        "negative_prompt_attention_mask": torch.ones(1, 7),
        "use_resolution_binning": False,
    }


def make_sd3_pipeline():
    """SD3 with perturbed attention guidance in its last block, and its inputs."""
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
    )
    scheduler, nothing = FlowMatchEulerDiscreteScheduler(), [None] * 7
    pipe = StableDiffusion3PAGPipeline(
        settled(model), scheduler, *nothing, pag_applied_layers="blocks.1"
    )
    return pipe, {
        "pooled_prompt_embeds": rand(1, 64, seed=3),
        "negative_pooled_prompt_embeds": rand(1, 64, seed=4),
    }


def generate(pipe, given, pag_scale):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=rand(1, 7, 32, seed=0),
        negative_prompt_embeds=rand(1, 7, 32, seed=1),
        latents=rand(1, 4, 8, 8, seed=2),
        num_inference_steps=STEPS,
        height=64,
        width=64,
        output_type="latent",
        pag_scale=pag_scale,
        **given,
    ).images


@pytest.mark.parametrize("make", [make_pixart_pipeline, make_sd3_pipeline])
def test_perturbed_attention_guidance_is_captured_once_per_state(make):
    pipe, given = make()
    scales = (0.0, 3.0, 0.0, 3.0)
    wanted = [generate(pipe, given, scale) for scale in scales]
    assert not torch.equal(wanted[0], wanted[1])
    model, processors = pipe.transformer, dict(pipe.transformer.attn_processors)
    pipe.transformer = dqar_fx.transform(model, Schedule.compute_all(STEPS))
    for scale, images in zip(scales, wanted, strict=True):
        assert torch.equal(generate(pipe, given, scale), images)
    assert len(pipe.transformer.captured_programs()) == 2
    assert model.attn_processors == processors


def test_processors_that_are_written_past_any_method_are_seen():
    model = make_pixart_pipeline()[0].transformer
    denoiser = dqar_fx.transform(model, Schedule.compute_all(STEPS))
    given = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    outputs, processors = [], dict(model.attn_processors)
    for owner in (denoiser, model):
        mine = []
        for processor in (None, Mean(), None):
            for block in owner.transformer_blocks:
                before = block.attn1.processor
                block.attn1.processor = processor or before
            with torch.no_grad():
                mine.append(owner(**given).sample)
            owner.set_attn_processor(dict(processors))
        outputs.append(mine)
    for found, wanted in zip(*outputs, strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(outputs[0][0], outputs[0][1])
    assert len(denoiser.captured_programs()) == 2


def test_skyreels_sets_how_many_frames_attend_to_each_other():
    model = settled(
        SkyReelsV2Transformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=256,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        )
    )
    changed = copy.deepcopy(model)
    denoiser = dqar_fx.transform(model, Schedule.compute_all(STEPS))
    outputs = []
    for num_frames in (1, 2, 1, 2):
        generator = torch.Generator().manual_seed(0)
        given = {
            "hidden_states": torch.randn(1, 16, 4, 4, 4, generator=generator),
            "timestep": torch.tensor([900]),
            "encoder_hidden_states": torch.randn(1, 7, 32, generator=generator),
        }
        changed._set_ar_attention(num_frames)
        denoiser._set_ar_attention(num_frames)
        outputs.append(denoiser(**given).sample)
        with torch.no_grad():
            assert torch.equal(outputs[-1], changed(**given).sample)
    assert not torch.equal(outputs[0], outputs[1])
    assert len(denoiser.captured_programs()) == 2
    assert model.config.num_frame_per_block == 1
    assert denoiser.config.num_frame_per_block == 2


def test_a_backend_of_attention_that_is_set_is_another_state():
    denoiser = dqar_fx.transform(make_flux().model, Schedule.compute_all(STEPS))
    before = denoiser._model_state.number
    denoiser.set_attention_backend("native")
    assert denoiser._model_state.number != before
    assert denoiser.num_parameters() == make_flux().model.num_parameters()
