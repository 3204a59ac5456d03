"""Who takes part in the ablation, and what is known of them before they run."""

from dataclasses import replace

import pytest
import torch

import dqar_fx
from benchmarks.ablation.configurations import (
    BASELINE,
    FULL,
    KV,
    MENDED,
    MENDED_FP16,
    MENDED_KV,
    QUANT,
    SCHEDULING,
    list_configurations,
    list_fewer_steps,
)
from benchmarks.ablation.facts import gather_facts
from benchmarks.ablation.plan import share_of_keys_values
from benchmarks.ablation.workshop import SharingWorkshop
from benchmarks.harness.contenders import Contender, Workshop
from benchmarks.harness.geometry import Geometry
from tests.benchmarks.ablation_runs import NAMES

GEOMETRY = Geometry(layers=2, width=64, heads=2, tokens=16, batch=2)


def test_configurations_are_those_of_the_report():
    found = {c.name: c for c in list_configurations(50, compiled=True, more=True)}
    sites = [f"block.{i}" for i in range(12)]
    tables = {n: c.schedule.resolve(sites) for n, c in found.items() if c.schedule}
    assert list(found) == [*NAMES, MENDED_FP16, MENDED_KV]
    assert found[BASELINE].schedule is None
    assert {n: (c.keep, c.cache) for n, c in found.items() if c.schedule} == {
        SCHEDULING: ("output", "fp16"),
        QUANT: ("output", "int8"),
        FULL: ("output", "int8"),
        KV: ("kv", "fp16"),
        MENDED: ("output", "int8"),
        MENDED_FP16: ("output", "fp16"),
        MENDED_KV: ("kv", "fp16"),
    }
    assert tables[QUANT].reuse_ratio == 0.98
    assert tables[FULL].reuse_ratio == 0.68
    assert tables[FULL] == tables[SCHEDULING] == tables[KV]
    assert tables[MENDED] == tables[MENDED_FP16] == tables[MENDED_KV]
    assert tables[MENDED].max_age == 3


def test_configurations_without_compiler_compile_nothing():
    contenders = list_configurations(9, compiled=False, more=True)
    assert not any(contender.compiled for contender in contenders)


@pytest.fixture(scope="module")
def facts():
    """A tiny model, and the facts of its configurations in 12 steps."""
    model = GEOMETRY.build()
    contenders = list_configurations(12, compiled=True, more=False)
    contenders.append(Contender("compute_all", 12, dqar_fx.Schedule.compute_all(12)))
    return model, gather_facts(model, call_of(), contenders)


def call_of():
    return {
        "hidden_states": GEOMETRY.draw_latent(),
        "timestep": torch.zeros(GEOMETRY.batch, dtype=torch.long),
        "class_labels": GEOMETRY.labels(),
    }


@pytest.mark.parametrize("name", [FULL, KV])
def test_facts_are_those_of_the_denoiser(name, facts):
    model, known = facts
    contender = next(
        c for c in list_configurations(12, compiled=False, more=False) if c.name == name
    )
    denoiser = Workshop(model, "eager").build(contender)
    denoiser.prepare(**call_of())
    assert known[name].cache_bytes == denoiser.cache_bytes
    assert known[name].reuse_ratio == denoiser.table.reuse_ratio
    assert dqar_fx.Schedule.from_actions(known[name].schedule).resolve(
        denoiser.table.sites
    ) == replace(denoiser.table, max_age=None)


def test_facts_of_equal_tables_compare(facts):
    model, known = facts
    output, kv, full = (known[name].macs for name in (SCHEDULING, KV, "compute_all"))
    assert output < kv < full <= known[BASELINE].macs
    share = (full - kv) / (full - output)
    assert share == pytest.approx(share_of_keys_values(model.config), abs=1e-9)
    assert known[KV].cache_bytes == 2 * known[SCHEDULING].cache_bytes
    assert known[FULL].cache_bytes <= 0.55 * known[SCHEDULING].cache_bytes
    assert known[BASELINE].cache_bytes is None


def test_workshop_captures_once_per_kind_of_cache(facts):
    contenders = {c.name: c for c in list_configurations(12, compiled=False, more=False)}
    workshop = SharingWorkshop(facts[0], "eager")
    first = workshop.build(contenders[QUANT])
    first.prepare(**call_of())
    second, other = (workshop.build(contenders[name]) for name in (FULL, SCHEDULING))
    assert second.program.captured is first.program.captured
    assert second.table.reuse_ratio == facts[1][FULL].reuse_ratio
    assert first.table.reuse_ratio == facts[1][QUANT].reuse_ratio
    assert second.program.slot_specs is not first.program.slot_specs
    with pytest.raises(dqar_fx.DqarError, match="nothing has been captured"):
        other.program  # noqa: B018 - fp16 is another kind
    assert workshop.build(contenders[BASELINE]) is facts[0]


def test_fewer_steps_cost_as_much(facts):
    known = facts[1]
    (rival, *others) = list_fewer_steps(known, compiled=True)
    step = known[BASELINE].macs / 12
    assert abs(rival.facts.macs - known[FULL].macs) <= step / 2
    assert rival.contender.steps == rival.facts.steps == round(known[FULL].macs / step)
    assert rival.contender.schedule is None
    assert len({rival.contender.steps, *(o.contender.steps for o in others)}) == 1 + len(
        others
    )


def test_fewer_steps_of_unknown_cost_are_none(facts):
    known = {name: replace(each, macs=None) for name, each in facts[1].items()}
    assert list_fewer_steps(known, compiled=True) == []
