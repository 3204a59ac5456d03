"""Graphs wait, without weights, for a model that is moved away and back."""

import copy

import pytest
import torch

import dqar_fx
from dqar_fx import Guidance, Schedule
from dqar_fx.program import programs
from tests.helpers.models import make_dit

STEPS = 4
WAYS = {
    "eager": {},
    "ahead": {"conditioning": "trajectory"},
    "forecast": {"schedule": Schedule.interval(STEPS, 3, warmup=2).forecast(1)},
    "blocks": {"capture": "blocks"},
    "guidance": {"guidance": Guidance(batched="conditional_first")},
    "regional": {"compile": {}},
    "packed": {"compile": {"prepack": True}},
    "released": {"release": "disk"},
}


def tensors_of(model):
    """Parameters and all buffers, also those that are in no state."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("way", WAYS)
def test_graphs_wait_for_a_model_that_comes_back(way, captures):
    case, graphs = make_dit(2, layers=2), []

    def count(gm, _inputs):
        graphs.append(gm)
        return gm.forward

    options = {"schedule": Schedule.interval(STEPS, 2), **WAYS[way]}
    if "compile" in options:
        options["compile"] = {**options["compile"], "backend": count}
    denoiser = dqar_fx.transform(case.model, **options)

    def run():
        denoiser.attach_timesteps(torch.tensor([900.0, 890.0, 880.0, 870.0]))
        return [denoiser(**case.inputs(step)).sample for step in range(STEPS)]

    before = run()
    counts = len(captures), len(graphs)
    weights = copy.deepcopy(tensors_of(case.model))
    for _ in range(2):
        denoiser.to("meta")
        with pytest.raises(dqar_fx.DqarError, match="has been moved since it was captured"):
            denoiser.program  # noqa: B018  # a property that raises
        waiting = denoiser.captured_programs()
        assert waiting
        for program in waiting:
            named = dict(program.captured.gm.named_parameters())
            assert not any(each.untyped_storage().nbytes() for each in named.values())
            assert not program.streams
        denoiser.to_empty(device="cpu")
        with torch.no_grad():
            for name, tensor in tensors_of(denoiser).items():
                tensor.copy_(weights[name])
        for found, expected in zip(run(), before, strict=True):
            assert torch.equal(found, expected)
        assert (len(captures), len(graphs)) == counts


def test_captures_wait_whose_programs_are_forgotten(monkeypatch, captures):
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 1)
    denoiser = dqar_fx.transform(make_dit(layers=2).model, Schedule.compute_all(1))
    for batch in (2, 3, 5):  # one for itself, and one for all sizes
        denoiser(**make_dit(batch, layers=2).inputs(0))
    held = denoiser._programs._captures
    assert len(held) == len(captures) == 2
    denoiser.to("meta")
    for program in held:
        named = dict(program.captured.gm.named_parameters())
        assert not any(each.untyped_storage().nbytes() for each in named.values())


def test_a_model_of_another_dtype_is_captured_anew(captures):
    case = make_dit(2, layers=2)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(1))
    denoiser(**case.inputs(0))
    assert not denoiser.to(torch.float64).captured_programs()
    assert len(captures) == 1
