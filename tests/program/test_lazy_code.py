"""Code is generated for what runs, not for each graph after each pass."""

from __future__ import annotations

from torch.fx._lazy_graph_module import _LazyGraphModule

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.passes.support.editing import generate_code
from tests.helpers.models import make_dit


def generated(monkeypatch):
    """A list that gets each module whose code is generated."""
    modules = []
    original = _LazyGraphModule._real_recompile

    def note(gm):
        modules.append(gm)
        return original(gm)

    monkeypatch.setattr(_LazyGraphModule, "_real_recompile", note)
    return modules


def test_transform_generates_no_code(monkeypatch):
    modules = generated(monkeypatch)
    case = make_dit(layers=3)
    dqar_fx.transform(case.model, Schedule.linear(4), example_inputs=case.inputs(0))
    assert not modules


def test_a_call_generates_the_code_of_its_regions_once(monkeypatch):
    case = make_dit(layers=3)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(4))
    modules = generated(monkeypatch)
    denoiser(**case.inputs(0))
    assert len(modules) == len(denoiser.program.variants)
    denoiser(**case.inputs(1))
    assert len(modules) == len(denoiser.program.variants)


def test_code_follows_the_graph():
    case = make_dit(layers=1)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(1))
    graph = denoiser.prepare(**case.inputs(0)).row_graph(0)
    assert "layer_norm" in graph.code
    generate_code(graph)
    assert graph.forward.__name__ == "forward"
