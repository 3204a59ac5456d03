"""transform(disable=...): a pass is left out everywhere, and nothing else changes."""

import json

import pytest
import torch

from dqar_fx import OptionError, Schedule, SiteError, transform
from dqar_fx.passes.pipeline import PASS_NAMES, REQUIRED
from tests.helpers.models import make_dit

FREE = [name for name in PASS_NAMES if name not in REQUIRED]
REGIONAL = {"unit": "regional", "backend": "eager"}


@pytest.fixture(scope="module")
def case():
    return make_dit(layers=2)


@pytest.fixture(scope="module")
def expected(case):
    """What comes out with all passes."""
    return run(denoiser_of(case), case)


@pytest.fixture(scope="module")
def compiled_names(case):
    """The passes that a compiled denoiser reports."""
    denoiser = denoiser_of(case, (), REGIONAL)
    run(denoiser, case)
    return names_of(denoiser)


def denoiser_of(case, disable=(), compile=None, actions="CRC", **more):
    schedule = Schedule.from_actions(actions)
    return transform(case.model, schedule, disable=disable, compile=compile, **more)


def names_of(denoiser):
    return {report.name for report in denoiser.explain().reports}


def run(denoiser, case, steps=3):
    return [denoiser(**case.inputs(step), return_dict=False)[0] for step in range(steps)]


@pytest.mark.parametrize("name", [name for name in FREE if name != "find_attention"])
def test_disable_eager_gives_the_same_bits(case, expected, name):
    denoiser = denoiser_of(case, (name,))
    assert all(map(torch.equal, run(denoiser, case), expected))
    assert name not in names_of(denoiser)


@pytest.mark.parametrize("name", [name for name in FREE if not name.startswith("find_")])
def test_disable_compiled_leaves_out_the_pass_alone(case, expected, compiled_names, name):
    denoiser = denoiser_of(case, (name,), REGIONAL)
    for found, value in zip(run(denoiser, case), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)
    assert names_of(denoiser) == compiled_names - {name}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("find_attention", "self"),
        ("find_feed_forward", "feed_forward"),
        ("find_residuals", "block"),
    ],
)
def test_disable_finder_leaves_out_its_sites(case, name, kind):
    with pytest.raises(SiteError, match=f"sites='{kind}' selects no site"):
        run(denoiser_of(case, (name,), sites=kind), case)


def test_disable_hoisting_leaves_everything_in_the_step(case):
    denoiser = denoiser_of(case, ("hoist_conditioning",))
    run(denoiser, case)
    assert not denoiser.program.plan.stages


def test_disable_merging_duplicates_keeps_them(case):
    sizes = []
    for disable in ((), ("merge_duplicates",)):
        denoiser = denoiser_of(case, disable)
        run(denoiser, case, 1)
        sizes.append(sum(len(stage.gm.graph.nodes) for stage in denoiser.program.plan.stages))
    assert sizes[1] > sizes[0]


def test_disable_is_told_by_explain(case):
    denoiser, plain = denoiser_of(case, ["merge_duplicates"]), denoiser_of(case)
    run(denoiser, case, 1)
    run(plain, case, 1)
    explained = denoiser.explain()
    assert explained.disabled == ("merge_duplicates",)
    assert json.loads(explained.to_json())["disabled"] == ["merge_duplicates"]
    assert "merge_duplicates     disabled" in str(explained)
    assert plain.explain().disabled == ()
    assert "disabled" not in str(plain.explain())


def test_disable_holds_after_compile_and_for_other_schedules(case):
    denoiser = denoiser_of(case, ("unify_layouts", "narrow_linears"))
    denoiser.compile(backend="eager")
    twin = denoiser.with_schedule(Schedule.from_actions("CCR"))
    for each in (denoiser, twin):
        run(each, case)
        assert "turn_skinny_linears" in names_of(each)
        assert not {"unify_layouts", "narrow_linears"} & names_of(each)


@pytest.mark.parametrize(
    "disable", ["narrow_linears", ("normalize",), ("normalise",), ("specialise",), (None,)]
)
def test_disable_wrong_names_raise_before_anything_runs(case, disable):
    with pytest.raises(OptionError, match="disable="):
        denoiser_of(case, disable)
