"""Diffusers models that read their conditioning on the host, against the untouched ones."""

import pytest
import torch

import dqar_fx
from tests.helpers.host_read_models import (
    MODELS,
    make_framepack,
    make_hunyuan_image,
    make_hunyuan_video_15,
    make_lumina2,
    make_omnigen,
    mask_of,
)

STEPS = 4


class Oracle:
    """The model with plain hooks on the modules of a table's sites."""

    def __init__(self, model, table):
        self.model, self.table, self.kept = model, table, {}

    @torch.no_grad()
    def __call__(self, step, stream=0, **inputs):
        handles = [
            self.model.get_submodule(path).register_forward_hook(self.hook(step, stream, i))
            for i, path in enumerate(self.table.sites)
        ]
        try:
            return self.model(**inputs, return_dict=False)[0]
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, step, stream, site):
        def replace(_module, _args, output):
            if self.table.actions[step, site] == 2:
                return self.kept[stream, site]
            is_tuple = isinstance(output, tuple)
            kept = tuple(map(torch.clone, output)) if is_tuple else output.clone()
            self.kept[stream, site] = kept
            return output

        return replace


def check_run(denoiser, model, requests):
    """Each step of a run, of one or more streams, equals the oracle's."""
    oracle = None
    for step in range(STEPS):
        for stream, case in enumerate(requests):
            inputs = case.inputs(step)
            found = denoiser(**inputs, return_dict=False)[0]
            oracle = oracle or Oracle(model, denoiser.table)
            assert torch.equal(found, oracle(step, stream, **inputs))
    assert 0 < denoiser.table.reuse_ratio < 1


@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_plain_hooks_bit_for_bit(name):
    case = MODELS[name]()
    denoiser = dqar_fx.transform(case.model, dqar_fx.Schedule.interval(STEPS, 2))
    check_run(denoiser, case.model, [case])
    assert denoiser.explain().reads
    assert len(denoiser.captured_programs()) == 1


OTHERS = {
    "Lumina2": (make_lumina2(), make_lumina2((2, 7))),
    "HunyuanVideo15": (make_hunyuan_video_15(), make_hunyuan_video_15((3,), image=True)),
    "HunyuanImage": (make_hunyuan_image(), make_hunyuan_image((7,))),
    "Framepack": (make_framepack(), make_framepack((2,))),
    "OmniGen": (make_omnigen(), make_omnigen(last=25)),
}


@pytest.mark.parametrize("name", ["Lumina2", "HunyuanVideo15"])
def test_streams_and_requests_with_other_masks_never_get_the_first_ones_values(name):
    first, second = OTHERS[name]
    denoiser = dqar_fx.transform(first.model, dqar_fx.Schedule.interval(STEPS, 2))
    for requests in ([first], [second], [first, second], [second], [first]):
        check_run(denoiser, first.model, requests)
        denoiser.reset()
    assert len(denoiser.captured_programs()) == 2


@pytest.mark.parametrize("name", ["Lumina2", "HunyuanImage"])
def test_other_masks_are_lowered_once_where_their_regions_are_equal(name):
    make = MODELS[name]
    case = make()
    denoiser = dqar_fx.transform(
        case.model,
        dqar_fx.Schedule.interval(STEPS, 2),
        compile={"unit": "regional", "backend": "eager"},
    )
    variants = []
    for lengths in (None, (4,) * case.latent_shape[0], (6,) * case.latent_shape[0]):
        if lengths is not None:
            case.given = {**case.given, "encoder_attention_mask": mask_of(*lengths)}
        for step in range(STEPS):
            inputs = case.inputs(step)
            found = denoiser(**inputs, return_dict=False)[0]
            if step == 0:
                with torch.no_grad():
                    wanted = case.model(**inputs, return_dict=False)[0]
                torch.testing.assert_close(found, wanted)
        variants.append(len(denoiser.program.variants))
    assert len(denoiser.captured_programs()) == 3
    if name == "HunyuanImage":  # tokens change places: all shapes are as they were
        assert len(set(variants)) == 1
