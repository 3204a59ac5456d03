"""Equal tensors are held once by the denoiser; the model that it was made of is untouched."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.models import make_dit
from tests.helpers.slow_cases import slow_but
from tests.helpers.tensor_reads import Reads

LAYERS = 4


def make_converted():
    """As diffusers converts DiT: a copy of one embedder in every block."""
    case = make_dit(layers=LAYERS)
    first, *others = case.model.transformer_blocks
    for block in others:
        block.norm1.emb = copy.deepcopy(first.norm1.emb)
    return case


def transformed(case, **options):
    return dqar_fx.transform(case.model, Schedule.compute_all(3), **options)


def storage_bytes(model):
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def embedder_bytes(model):
    return sum(p.nbytes for p in model.transformer_blocks[0].norm1.emb.parameters())


@torch.no_grad()
def check_equal(denoiser, case, step=0):
    inputs = case.inputs(step)
    assert torch.equal(denoiser(**inputs).sample, case.model(**inputs).sample)


def test_shared_tensors_hold_one_copy():
    case = make_converted()
    before = {k: (v.data_ptr(), v.clone()) for k, v in case.model.state_dict().items()}
    denoiser = transformed(case)
    check_equal(denoiser, case)
    saved = (LAYERS - 1) * embedder_bytes(case.model)
    held, original = storage_bytes(denoiser), storage_bytes(case.model)
    assert original - held == denoiser.parameter_bytes.merged == saved
    assert denoiser.parameter_bytes.total == held
    for name, value in case.model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])


def test_shared_tensors_embedder_is_evaluated_once():
    case = make_converted()
    denoiser = transformed(case)
    denoiser.prepare(**case.inputs(0))
    with Reads() as reads:
        denoiser(**case.inputs(0))
    counts = reads.of(denoiser.model)
    embedders = {n: c for n, c in counts.items() if ".emb." in n}
    assert set(embedders.values()) == {1}  # all names show one memory
    with torch.no_grad(), Reads() as original:
        case.model(**case.inputs(0))
    first = "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight"
    assert original.of(case.model)[first] == 2  # by the block and by the last layer
    assert sum(c for n, c in original.of(case.model).items() if ".emb." in n) == 15


def test_shared_tensors_free_the_copies_once_the_original_is_gone():
    case = make_converted()
    denoiser = transformed(case)
    denoiser(**case.inputs(0))
    blocks = case.model.transformer_blocks
    tables = [block.norm1.emb.class_embedder.embedding_table.weight for block in blocks]
    storages = [StorageWeakRef(table.untyped_storage()) for table in tables]
    del case.model, blocks, tables
    gc.collect()
    assert [storage.expired() for storage in storages] == [False, *[True] * (LAYERS - 1)]


@pytest.mark.parametrize("move", [lambda d: d.half(), lambda d: d.to(torch.float64)])
def test_shared_tensors_outlive_a_conversion(move):
    case = make_converted()
    denoiser = transformed(case)
    denoiser(**case.inputs(0))
    before = storage_bytes(denoiser)
    move(denoiser)
    scale = next(denoiser.parameters()).itemsize / 4
    assert storage_bytes(denoiser) == scale * before
    converted = case.to(next(denoiser.parameters()).dtype)
    check_equal(denoiser, converted)
    assert storage_bytes(denoiser) == scale * before


def test_shared_tensors_outlive_a_deep_copy_and_another_schedule():
    case = make_converted()
    denoiser = transformed(case)
    check_equal(denoiser, case)
    for other in (copy.deepcopy(denoiser), denoiser.with_schedule(Schedule.compute_all(2))):
        check_equal(other, case)
        assert storage_bytes(other) == storage_bytes(denoiser)


def test_shared_tensors_loosen_where_the_original_is_written_to():
    """``reset`` looks again; so does a twin's."""
    case = make_converted()
    denoiser = transformed(case)
    check_equal(denoiser, case)
    twin = denoiser.with_schedule(Schedule.compute_all(2))
    emb = case.model.transformer_blocks[2].norm1.emb
    with torch.no_grad():
        emb.timestep_embedder.linear_1.weight.mul_(1.5)
    for each in (denoiser, twin):
        each.reset()
        check_equal(each, case)
    emb.load_state_dict(case.model.transformer_blocks[0].norm1.emb.state_dict())
    denoiser.reset()
    check_equal(denoiser, case)


def test_shared_tensors_stay_where_all_were_written_alike():
    case = make_converted()
    denoiser = transformed(case)
    check_equal(denoiser, case)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(1.01)
    program = denoiser.program
    denoiser.reset()
    check_equal(denoiser, case)
    assert denoiser.program is program


def test_shared_tensors_of_weights_loaded_after_transform():
    """Two models of equal weights: then others come, as ``reset`` documents."""
    case, other = make_converted(), make_dit(layers=LAYERS)
    denoiser = transformed(case)
    check_equal(denoiser, case)
    case.model.load_state_dict({k: v * 0.9 for k, v in other.model.state_dict().items()})
    denoiser.reset()
    check_equal(denoiser, case)


def test_shared_tensors_of_parameters_that_were_one_already():
    case = make_dit(layers=2)
    first, second = case.model.transformer_blocks
    second.norm1.emb = first.norm1.emb
    denoiser = transformed(case)
    check_equal(denoiser, case)
    assert denoiser.parameter_bytes.merged == 0
    assert storage_bytes(denoiser) == storage_bytes(case.model)


def executed_flops(case, denoiser):
    """Of each of three steps, by torch's own count, which leaves attention on CPUs out."""
    counts = []
    for step, t in enumerate(torch.linspace(900, 90, 3)):
        call = {**case.inputs(step), "timestep": t.expand(2)}
        denoiser.prepare(**call)
        with FlopCounterMode(display=False) as counter:
            denoiser(**call)
        counts.append(counter.get_total_flops())
    return counts


@pytest.mark.parametrize("make", slow_but(make_dit, of=[make_converted, make_dit]))
def test_shared_tensors_conditioning_macs_are_those_executed(make):
    case = make()
    ahead = transformed(case, conditioning="trajectory")
    first, row, last = executed_flops(case, ahead)
    assert row == last
    assert ahead.report(device="A100").conditioning.macs == (first - row) / 2
    each = transformed(case, conditioning="step")
    total = sum(executed_flops(case, each))
    assert each.report(device="A100").conditioning.macs == (total - 3 * row) / 2
