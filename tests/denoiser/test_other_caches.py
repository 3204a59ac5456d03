"""Two caches do not go together: another one on a model or a denoiser is refused by name."""

import functools
import types
from unittest import mock

import pytest
import torch
from diffusers import hooks

import dqar_fx
from dqar_fx import DqarError, Schedule
from tests.helpers.models import make_dit, make_flux
from tests.helpers.sd3_pipeline import make_tiny_sd3, put_in_pipeline

COMPUTE = Schedule.compute_all(4)
BLOCKS = ("transformer_blocks", "single_transformer_blocks")
SOME_STEPS = {
    "spatial_attention_block_skip_range": 2,
    "spatial_attention_timestep_skip_range": (0, 1000),
    "spatial_attention_block_identifiers": BLOCKS,
    "current_timestep_callback": lambda: 500,
}
CONFIGS = {
    "PyramidAttentionBroadcastHook": lambda: hooks.PyramidAttentionBroadcastConfig(
        **SOME_STEPS
    ),
    "FasterCacheDenoiserHook": lambda: hooks.FasterCacheConfig(
        **SOME_STEPS, tensor_format="BCHW", attention_weight_callback=lambda _: 0.5
    ),
    "FBCHeadBlockHook": lambda: hooks.FirstBlockCacheConfig(threshold=0.1),
    "MagCacheHeadHook": lambda: hooks.MagCacheConfig(
        num_inference_steps=4, mag_ratios=[1.0] * 4
    ),
    "SeaCacheRootHook": hooks.SeaCacheConfig,
    "TaylorSeerCacheHook": hooks.TaylorSeerCacheConfig,
    "TextKVCacheTransformerHook": hooks.TextKVCacheConfig,
}


class Pipe:
    """What has a denoiser."""


@pytest.fixture
def case():
    return make_dit(layers=2)


def run(model, case):
    with torch.no_grad():
        return model(**case.inputs(0)).sample


# ---- of diffusers ------------------------------------------------------------------------


@pytest.mark.parametrize("hook", CONFIGS)
def test_caches_of_diffusers_are_refused_by_name(hook):
    model = make_flux().model
    model.enable_cache(CONFIGS[hook]())
    pipe = Pipe()
    pipe.transformer = model
    with pytest.raises(DqarError, match=rf"hook of diffusers \({hook}.*disable_cache\(\)"):
        dqar_fx.transform(model, COMPUTE)
    with pytest.raises(DqarError, match=rf"hook of diffusers \({hook}"):
        dqar_fx.enable(pipe, COMPUTE)
    assert pipe.transformer is model


def test_a_model_whose_cache_was_taken_away_is_as_before():
    case = make_flux()
    wanted = run(case.model, case)
    case.model.enable_cache(hooks.FirstBlockCacheConfig(threshold=0.1))
    case.model.disable_cache()
    assert torch.equal(run(dqar_fx.transform(case.model, COMPUTE), case), wanted)


def test_hooks_of_a_cache_on_a_denoiser_are_refused_at_the_next_call():
    case = make_flux()
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    run(denoiser, case)
    hooks.apply_pyramid_attention_broadcast(
        denoiser, CONFIGS["PyramidAttentionBroadcastHook"]()
    )
    with pytest.raises(DqarError, match=r"PyramidAttentionBroadcastHook"):
        run(denoiser, case)


# ---- forwards that are replaced ----------------------------------------------------------


def as_of(library, function):
    """A function as if it was written in a library."""
    own = {**function.__globals__, "__name__": f"{library}.caching"}
    made = types.FunctionType(function.__code__, own, closure=function.__closure__)
    return functools.update_wrapper(made, function)


def patch_blocks(model, library="a_library"):
    """What cache-dit, ParaAttention and others do: they call the model's forward inside."""
    original = model.forward

    @functools.wraps(original)
    def new_forward(self, *args, **kwargs):
        with mock.patch.object(self, "transformer_blocks", self.transformer_blocks[:1]):
            return original(*args, **kwargs)

    model.forward = as_of(library, new_forward).__get__(model)


def teacache_forward(self, hidden_states, timestep, class_labels, return_dict=True):
    """What TeaCache does: an own forward that counts, in the place of the class's."""
    del timestep, class_labels, return_dict
    self.cnt += 1
    return (hidden_states,)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("cache_dit", "of cache-dit"),
        ("para_attn", "of ParaAttention"),
        ("a_library", r"patch_blocks.*test_other_caches\.py:\d+"),
    ],
)
def test_a_forward_that_calls_the_model_it_was_made_for_is_refused(library, name, case):
    patch_blocks(case.model, library)
    with pytest.raises(DqarError, match=rf"forward of DiTTransformer2DModel .*{name}"):
        dqar_fx.transform(case.model, COMPUTE)


def test_a_forward_inside_that_calls_another_module_is_refused(case):
    block = case.model.transformer_blocks[1]
    first = case.model.transformer_blocks[0]
    block.forward = lambda hidden_states, **_: first(hidden_states)
    with pytest.raises(DqarError, match=r"forward of transformer_blocks\.1 \(BasicTransf"):
        dqar_fx.transform(case.model, COMPUTE)


@pytest.mark.parametrize("is_of_class", [False, True])
def test_a_forward_that_writes_for_the_next_call_is_refused(is_of_class, case, monkeypatch):
    kind = type(case.model)
    monkeypatch.setattr(kind, "cnt", 0, raising=False)
    if is_of_class:
        monkeypatch.setattr(kind, "forward", teacache_forward)
    else:
        case.model.forward = types.MethodType(teacache_forward, case.model)
    with pytest.raises(DqarError, match=r"teacache_forward .* of TeaCache, .*\(cnt\)"):
        dqar_fx.transform(case.model, COMPUTE)


def test_a_class_that_is_patched_before_the_first_call_is_refused_there(case, monkeypatch):
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    monkeypatch.setattr(type(case.model), "forward", teacache_forward)
    with pytest.raises(DqarError, match="of TeaCache"):
        run(denoiser, case)


def scale_class(model, monkeypatch):
    own = type(model).forward

    def forward(self, *args, **kwargs):
        return own(self, 3 * kwargs.pop("hidden_states"), *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)


def scale_block(model, _):
    block = model.transformer_blocks[0].ff
    block.forward = types.MethodType(lambda self, x: 3 * type(self).forward(self, x), block)


@pytest.mark.parametrize("way", [scale_class, scale_block])
def test_a_forward_that_only_computes_may_be_replaced(way, case, monkeypatch):
    before = run(case.model, case)
    way(case.model, monkeypatch)
    wanted = run(case.model, case)
    assert not torch.equal(wanted, before)
    assert torch.equal(run(dqar_fx.transform(case.model, COMPUTE), case), wanted)


# ---- on a denoiser -----------------------------------------------------------------------


def test_another_cache_does_not_get_around_a_denoiser(case):
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    wanted = run(denoiser, case)
    with pytest.raises(DqarError, match="of cache-dit"):
        patch_blocks(denoiser, "cache_dit")
    with pytest.raises(DqarError, match=r"dqar_fx\.disable\(pipe\)"):
        type(denoiser).forward = teacache_forward
    assert torch.equal(run(denoiser, case), wanted)


def test_a_denoiser_is_not_transformed_again(case):
    denoiser = dqar_fx.transform(case.model, COMPUTE)
    with pytest.raises(dqar_fx.CaptureError, match="transformed already"):
        dqar_fx.transform(denoiser, COMPUTE)


def test_a_pipeline_is_not_enabled_again():
    pipe = dqar_fx.enable(put_in_pipeline(make_tiny_sd3(4)), COMPUTE)
    with pytest.raises(DqarError, match="enabled already"):
        dqar_fx.enable(pipe, COMPUTE)
    with pytest.raises(DqarError, match="transformed already"):
        dqar_fx.enable(put_in_pipeline(pipe.transformer), COMPUTE)
