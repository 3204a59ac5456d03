"""Weights of the conditioning leave while a table stands for them, and come back."""

from __future__ import annotations

import copy
import gc
import math
import os

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch.multiprocessing.reductions import StorageWeakRef

import dqar_fx
from benchmarks.harness.geometry import Geometry
from dqar_fx import DqarError, Guidance, OptionError, Schedule
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.slow_cases import slow_but

STEPS = 3


def transformed(case, **options):
    options = {"release": "disk", **options}
    return dqar_fx.transform(case.model, Schedule.compute_all(STEPS), **options)


def timesteps_of(case):
    return torch.linspace(case.top, case.top / 10, STEPS)


@torch.no_grad()
def run(case, denoiser, seed=0, model=None):
    """One trajectory, each step against the original; the outputs."""
    outputs = []
    for step, t in enumerate(timesteps_of(case)):
        call = {**case.inputs(step, seed), "timestep": t.expand(case.latent_shape[0])}
        expected, found = (model or case.model)(**call).sample, denoiser(**call).sample
        error = (found - expected).abs().max() / expected.abs().max()
        tolerance = 2e-5 if expected.dtype == torch.float32 else 2e-2
        assert error < tolerance, (step, error)
        outputs.append(found)
    return torch.stack(outputs)


def embedder(module):
    return module.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight


@pytest.mark.parametrize("name", slow_but("dit", of=MAKERS))
@pytest.mark.parametrize("compile", [None, {"backend": "eager"}])
def test_release_changes_no_value(name, compile):
    case = MAKERS[name]()
    kept = transformed(case, release=None, conditioning="trajectory", compile=compile)
    released = transformed(case, compile=compile)
    for seed in range(2):
        assert torch.equal(run(case, kept, seed), run(case, released, seed))
        case.given = {k: new_prompt(v) for k, v in case.given.items()}
    assert released.released_bytes > 0


def new_prompt(value):
    if not isinstance(value, torch.Tensor):
        return value
    return (value + 1) % 10 if value.dtype == torch.long else value * 0.5


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_release_frees_what_no_step_reads(name):
    """Once the original is gone, nothing else holds the memory of what is released."""
    case = MAKERS[name]()
    denoiser = transformed(case)
    call = {**case.inputs(0), "timestep": timesteps_of(case)[0].expand(2)}
    denoiser.prepare(**call)
    counted = denoiser.parameter_bytes
    storages = {
        tensor.untyped_storage().data_ptr(): (
            StorageWeakRef(tensor.untyped_storage()),
            tensor.untyped_storage().nbytes(),
        )
        for tensor in [*case.model.parameters(), *case.model.buffers()]
    }
    assert sum(size for _, size in storages.values()) == counted.total + counted.merged
    original, case.model = case.model, None
    del original
    denoiser(**call)
    gc.collect()
    gone = sum(size for ref, size in storages.values() if ref.expired())
    assert (
        gone == counted.released + counted.merged == denoiser.released_bytes + counted.merged
    )
    assert counted.conditioning > 0.2 * counted.total


def test_release_goes_on_without_weights_until_another_prompt(monkeypatch):
    case, loads = make_dit(layers=2), []
    load = dqar_fx.conditioning.release.load_bytes
    patched = dqar_fx.conditioning.release, "load_bytes"
    monkeypatch.setattr(*patched, lambda *a: loads.append(1) or load(*a))
    denoiser = transformed(case)
    for seed in range(3):
        run(case, denoiser, seed)
    assert loads == []  # same labels, same timesteps
    case.given["class_labels"] += 1
    run(case, denoiser)
    brought = len(loads)
    assert brought > 0
    size = os.fstat(denoiser.residence._file.fileno()).st_size
    run(case, denoiser)
    case.given["class_labels"] += 1
    run(case, denoiser)
    assert len(loads) == 2 * brought
    assert os.fstat(denoiser.residence._file.fileno()).st_size == size  # written once


def test_release_leaves_the_model_alone():
    case = make_dit(layers=2)
    before = {k: (v.data_ptr(), v.clone()) for k, v in case.model.state_dict().items()}
    run(case, transformed(case))
    for name, value in case.model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])


def test_release_puts_nan_in_their_place():
    case = make_dit(layers=2)
    denoiser = transformed(case)
    run(case, denoiser)
    weight = embedder(denoiser.model)  # what is looked up on the denoiser comes back first
    assert weight.shape == embedder(case.model).shape
    assert weight.untyped_storage().nbytes() == weight.itemsize
    assert weight.isnan().all()


def test_release_state_comes_back_whole():
    case = make_dit(layers=2)
    denoiser = transformed(case)
    run(case, denoiser)
    state = denoiser.state_dict()
    for name, value in case.model.state_dict().items():
        assert torch.equal(state[name], value)
    assert denoiser.released_bytes == 0
    run(case, denoiser)
    assert denoiser.released_bytes > 0


def test_release_then_another_signature():
    case, more = make_dit(layers=2), make_dit(batch=3, layers=2)
    denoiser = transformed(case)
    run(case, denoiser)
    run(more, denoiser, model=case.model)
    run(case, denoiser)
    assert denoiser.released_bytes == denoiser.parameter_bytes.released


def test_release_then_conversion():
    case = make_dit(layers=2)
    denoiser = transformed(case)
    run(case, denoiser)
    denoiser.double()
    case.to(torch.float64)
    run(case, denoiser)
    assert denoiser.released_bytes > 0


def test_release_deep_copy_has_weights_of_its_own():
    case = make_dit(layers=2)
    denoiser = transformed(case)
    run(case, denoiser)
    twin = copy.deepcopy(denoiser)
    run(case, twin)
    run(case, denoiser)
    assert denoiser.released_bytes == twin.released_bytes > 0


@pytest.mark.parametrize("guidance", [None, Guidance(batched="unconditional_first")])
def test_release_with_another_schedule(guidance):
    case = make_dit(batch=4, layers=2)
    denoiser = transformed(case, guidance=guidance)
    run(case, denoiser)
    twin = denoiser.with_schedule(Schedule.interval(STEPS, 2))
    for step, t in enumerate(timesteps_of(case)):
        twin(**{**case.inputs(step), "timestep": t.expand(4)})
    assert twin.released_bytes == denoiser.released_bytes > 0
    case.given["class_labels"] += 1
    run(case, denoiser)
    assert math.isfinite(denoiser.released_bytes)


def test_release_with_guidance():
    case = make_dit(batch=4, layers=2)
    denoiser = transformed(case, guidance=Guidance(batched="unconditional_first"))
    for seed in range(2):
        run(case, denoiser, seed)
        case.given["class_labels"] = (case.given["class_labels"] + 1) % 10
    assert denoiser.released_bytes > 0


def test_release_of_two_streams():
    case = make_dit(layers=2)
    denoiser = transformed(case)
    for step, t in enumerate(timesteps_of(case)):
        for name, label in (("cond", 3), ("uncond", 9)):
            call = {**case.inputs(step), "timestep": t.expand(2)}
            call["class_labels"] = torch.full((2,), label)
            with denoiser.cache_context(name), torch.no_grad():
                torch.testing.assert_close(
                    denoiser(**call).sample, case.model(**call).sample, rtol=2e-5, atol=1e-4
                )
        assert denoiser.released_bytes > 0


def test_release_on_the_host_frees_nothing_there():
    case = make_dit(layers=2)
    denoiser = transformed(case, release="host")
    with pytest.warns(UserWarning, match=r"frees nothing here.*release='disk'"):
        run(case, denoiser)
    assert denoiser.released_bytes == 0
    case.given["class_labels"] += 1
    run(case, denoiser)


def test_release_never_comes_where_timesteps_are_unknown():
    case = make_dit(layers=2)
    denoiser = transformed(case)
    for step in range(STEPS - 1):
        denoiser(**case.inputs(step))
    with pytest.warns(UserWarning, match=r"are not released.*attach_timesteps"):
        denoiser(**case.inputs(STEPS - 1))
    assert denoiser.released_bytes == 0


def test_release_to_a_full_disk(monkeypatch):
    class Full:
        def seek(self, *_):
            return 0

        def tell(self):
            return 0

        def close(self):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

    case = make_dit(layers=2)
    denoiser = transformed(case)
    monkeypatch.setattr(
        dqar_fx.conditioning.release.tempfile, "TemporaryFile", lambda **_: Full()
    )
    with pytest.raises(DqarError, match=r"cannot be written.*TMPDIR"):
        run(case, denoiser)
    monkeypatch.undo()
    denoiser.residence._file = None
    run(case, denoiser)


@pytest.mark.parametrize("place", ["gpu", 1, True])
def test_release_to_an_unknown_place_is_refused(place):
    with pytest.raises(OptionError, match="known are None, host, disk"):
        transformed(make_dit(layers=1), release=place)


def test_release_with_conditioning_per_step_is_refused():
    with pytest.raises(OptionError, match="every step needs the parameters"):
        transformed(make_dit(layers=1), conditioning="step")


@pytest.mark.slow
def test_release_of_dit_xl_leaves_three_fifths():
    """The true geometry, without values: 303.6 M of 749.8 M parameters."""
    geometry = Geometry(layers=28, width=1152, heads=16)
    with torch.device("meta"):
        model = geometry.build()
        call = {
            "hidden_states": geometry.draw_latent(),
            "timestep": torch.zeros(2, dtype=torch.long),
            "class_labels": geometry.labels(),
        }
    assert isinstance(model, DiTTransformer2DModel)
    denoiser = dqar_fx.transform(model, Schedule.compute_all(50), example_inputs=call)
    counted = denoiser.parameter_bytes
    parameters = sum(p.numel() for p in model.parameters())
    assert round(parameters / 1e6, 1) == 749.8
    assert round(counted.conditioning / 4e6, 1) == 303.6
    assert counted.released >= 0.38 * counted.total
