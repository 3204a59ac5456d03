"""Repeats rotate and end in time; speed is taken repeat by repeat; hooks do not stay."""

import math
import statistics
import time

import pytest
import torch
from torch import nn

from benchmarks.harness.contenders import FEWER, Contender, Workshop, line_up, list_schedules
from benchmarks.harness.machine import Machine, can_compile, describe_machine
from benchmarks.harness.pipelines import Task, name_classes
from benchmarks.harness.timing import Compiled, describe_speed, take_ratios, timed_calls
from benchmarks.harness.trials import Arena, Trial, compete
from benchmarks.main_job.rows import describe_times
from benchmarks.quality.judge import measure_psnr_db

CPU = torch.device("cpu")


class Recorder:
    """A pipeline and its pictures: calls its transformer once per step."""

    seeds = (0,)

    def __init__(self):
        self.order = []

    def generate(self, pipe, steps):
        self.order.append(pipe.transformer)
        for _ in range(steps):
            pipe.transformer(torch.zeros(1))
        return torch.zeros(1, 1, 2, 2)


class NamedWorkshop(Workshop):
    def build(self, contender):
        module = nn.Identity()
        module.called = contender.name
        return module


def compete_of(names, **options):
    recorder = Recorder()
    pipe = type("Pipe", (), {})()
    arena = Arena(pipe, recorder, NamedWorkshop(nn.Identity(), "eager"), CPU)
    trials = [Trial(Contender(name, 2), macs=1) for name in names]
    compete(arena, trials, **options)
    return trials, [getattr(module, "called", "-") for module in recorder.order]


def test_compete_rotates_the_order():
    trials, order = compete_of("abc", repeats=3, deadline=math.inf)
    assert order == ["-", *"abc", *"abc", *"bca", *"cab"]
    assert [len(trial.step_s) for trial in trials] == [3, 3, 3]
    assert all(len(steps) == 2 for trial in trials for steps in trial.step_s)


def test_compete_late_stops_after_three_repeats():
    trials, _ = compete_of("ab", repeats=9, deadline=time.perf_counter() - 1)
    assert [len(trial.step_s) for trial in trials] == [3, 3]


def test_timed_calls_leaves_no_hook():
    module = nn.Identity()
    with timed_calls(module, CPU) as step_s:
        module(torch.zeros(1))
        module(torch.zeros(1))
    module(torch.zeros(1))
    assert len(step_s) == 2
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_describe_speed_is_paired():
    base = Trial(Contender("base", 1), 1, step_s=[[2.0], [20.0], [200.0]])
    fast = Trial(Contender("fast", 2), 1, step_s=[[0.5, 0.5], [4.0, 4.0], [90.0, 10.0]])
    assert describe_speed(take_ratios(base.trajectory_s, fast.trajectory_s)) == {
        "speed_median": 2.0,
        "speed_min": 2.0,
        "speed_max": 2.5,
    }


def test_describe_times_takes_a_later_trajectory_off_the_first():
    trial = Trial(Contender("a", 2), 1, warmup_s=10.0, step_s=[[1.0, 1.0], [1.0, 3.0]])
    assert describe_times(trial)["compile_s"] is None  # nothing was compiled
    trial.compiled = Compiled(graphs=1, breaks=0)
    times = describe_times(trial)
    assert times["compile_s"] == 10.0 - statistics.median([2.0, 4.0])
    assert times["step_ms_median"] == 1500.0
    assert times["step_ms_p90"] == pytest.approx(2400.0)


def test_compiled_counts_graphs():
    before = Compiled.so_far()
    torch.compile(torch.neg, backend="eager")(torch.ones(1))
    assert Compiled.so_far() - before == Compiled(graphs=1, breaks=0)


def test_line_up_has_untransformed_baselines_and_fewer_steps():
    names = [c.name for c in line_up(50, fewer_steps=41, compiled=True)]
    assert names[:2] == ["untransformed eager", "untransformed compiled"]
    assert names[2:-1] == list(list_schedules(50))
    assert names[-1] == "untransformed 41 steps"
    assert FEWER in names


def test_line_up_without_compiler_compiles_nothing():
    assert not any(c.compiled for c in line_up(9, fewer_steps=None, compiled=False))


def test_workshop_shares_the_compiled_untransformed_model():
    workshop = Workshop(nn.Identity(), "regional")
    fewer, full = Contender("fewer", 3), Contender("full", 9)
    assert workshop.build(fewer) is workshop.build(full)
    assert workshop.build(Contender("eager", 9, compiled=False)) is workshop.original


@pytest.mark.parametrize(("error", "psnr_db"), [(0.0, math.inf), (0.1, 20.0), (1.0, 0.0)])
def test_measure_psnr_db(error, psnr_db):
    images = torch.zeros(2, 1, 4, 4)
    assert measure_psnr_db(images + error, images) == pytest.approx(psnr_db, abs=1e-5)


def test_describe_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    machine = describe_machine(CPU)
    assert isinstance(machine, Machine)
    assert (machine.commit, machine.dirty) == (None, None)
    assert machine.processor
    assert "commit" not in str(machine)


def test_can_compile_needs_no_compiler_elsewhere():
    assert can_compile(torch.device("cuda"))


def test_task_cycles_through_the_classes():
    config = type("Config", (), {"num_embeds_ada_norm": 2})()
    transformer = type("Transformer", (), {"config": config})()
    pipe = type("Pipe", (), {"labels": {"cat": 5, "tom": 5, "dog": 2}})()
    pipe.transformer = transformer
    task = Task.of(pipe, 3, 1.5)
    assert (task.labels, task.names, task.batch) == ((2, 5, 2), ("dog", "cat", "dog"), 6)
    pipe.labels = {}
    assert name_classes(pipe) == {0: "class 0", 1: "class 1"}
