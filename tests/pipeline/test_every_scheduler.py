"""Every scheduler of diffusers under a table: each row is read at its own timestep.

The oracle counts timesteps as the loop goes through them, and keeps what attention gave in
plain hooks. Solvers of second order call the denoiser twice in a step, and PNDM up to four
times at one timestep: a row is an evaluation.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
)

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import settled
from tests.helpers.scheduler_loops import (
    ALWAYS_FROM_FIRST,
    NOT_RUN,
    Loop,
    called_timesteps,
    is_installed,
    list_schedulers,
    list_variants,
)

pytestmark = [
    # of schedulers: tensors given to numpy, hints on settings, classes that are to go
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
EVERY = 3
QUICK = (
    "DDIMScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Classes whose first variant is tried where slow tests are left out."""
LABELS = torch.tensor([1, 2])


def list_cases():
    """All variants of all classes; why a class is left out, in the place of its variants."""
    for kind in list_schedulers():
        name, reason = kind.__name__, NOT_RUN.get(kind.__name__)
        if not is_installed(kind):
            reason = "it needs a package that is not installed"
        if reason is not None:
            yield pytest.param(None, marks=pytest.mark.skip(reason=reason), id=name)
            continue
        for number, variant in enumerate(list_variants(kind)):
            marks = [] if name in QUICK and not number else [pytest.mark.slow]
            yield pytest.param(variant, marks=marks, id=str(variant))


@pytest.fixture(scope="module")
def model():
    return settled(
        DiTTransformer2DModel(
            num_attention_heads=1,
            attention_head_dim=8,
            num_layers=1,
            in_channels=4,
            out_channels=4,
            sample_size=4,
            patch_size=2,
            num_embeds_ada_norm=4,
        )
    )


def make_actions(num_rows):
    """Every third row computes, and keeps what a later one reads."""
    stores = [row % EVERY == 0 and row + 1 < num_rows for row in range(num_rows)]
    return [1 if store else 2 * (row % EVERY > 0) for row, store in enumerate(stores)]


class Expected(Loop):
    """The untouched model with hooks; ``called`` are the timesteps of the latest run."""

    def __call__(self, variant, start=0, *, plain=False):
        """The latent, with or without reuse; ``start`` is a row that computes."""
        oracle, self.called = Oracle(self.transformer), []

        def ask(number, latent, timestep):
            self.called.append(number)
            row = make_actions(len(self.scheduler.timesteps))[number]
            given = {"hidden_states": latent, "timestep": timestep, "class_labels": LABELS}
            return oracle([0 if plain else row], **given)

        return super().__call__(variant, ask, start)


@pytest.mark.parametrize("variant", list(list_cases()))
def test_scheduler_reads_each_row_at_its_own_timestep(model, variant):
    pipe, expected = (each(model, variant.make()) for each in (Loop, Expected))
    late = EVERY * getattr(pipe.scheduler, "order", 1)
    starts = (0,) if variant.kind.__name__ in ALWAYS_FROM_FIRST else (0, late)
    dqar_fx.enable(pipe, Schedule.interval(every=EVERY))

    def ask(number, latent, timestep):
        return pipe.transformer(latent, timestep=timestep, class_labels=LABELS).sample

    for start in starts:  # on the same schedulers, some of which keep what they had
        found = pipe(variant, ask, start)
        assert found.isfinite().all()
        assert torch.equal(found, expected(variant, start))
        run = pipe.transformer.runs[-1]
        assert [call.step for call in run.calls] == expected.called
        assert expected.called == list(range(start, len(called_timesteps(pipe.scheduler))))
        assert run.num_reused == run.num_promised > 0
    assert len(pipe.transformer.runs) == len(starts)
    assert not torch.equal(found, expected(variant, start, plain=True))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (HeunDiscreteScheduler, "evaluations 0 to 18 of 19 (10 steps of the solver)"),
        (KDPM2DiscreteScheduler, "evaluations 0 to 18 of 19 (10 steps of the solver)"),
        (PNDMScheduler, "evaluations 0 to 18 of 19 (10 steps of the solver)"),
        (DPMSolverMultistepScheduler, "steps 0 to 9 of 10"),
    ],
)
def test_reports_name_evaluations_and_steps_where_they_differ(model, kind, named):
    pipe = dqar_fx.enable(Loop(model, kind()), Schedule.interval(every=EVERY))
    pipe.scheduler.set_timesteps(10)
    for t in pipe.scheduler.timesteps:
        latent = torch.ones(2, 4, 4, 4)
        answer = pipe.transformer(latent, timestep=t.expand(2), class_labels=LABELS).sample
        pipe.scheduler.step(answer, t, latent)
    summary = dqar_fx.summary(pipe)
    assert summary.runs[0].num_solver_steps == 10
    assert str(summary).startswith(f"transformer: {named}\n")
    assert pipe.transformer.runs[-1].describe().startswith(f"run of {named}: ")
    is_apart = named.startswith("evaluations")
    rows = "19 evaluations (10 steps of the solver)" if is_apart else "10 steps"
    assert str(pipe.transformer.table).startswith(f"{rows} x 1 sites")
    report = pipe.transformer.report(device="H100")
    assert report.named_rows == rows
    assert f", {rows}\n" in str(report)
    assert ("| evaluations" in str(report)) == is_apart
    (other,) = dqar_fx.compare(
        pipe.transformer,
        {"all": Schedule.compute_all(len(pipe.scheduler.timesteps))},
        device="H100",
    ).values()
    assert other.named_rows == rows


def test_classes_that_are_left_out_are_there():
    assert set(NOT_RUN) <= {kind.__name__ for kind in list_schedulers()}
