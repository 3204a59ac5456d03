"""Weights that are written to between runs, by whatever way: no run sees old ones."""

import copy
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dqar_fx
from dqar_fx import DqarError, Schedule
from tests.helpers.models import seeded, settled

SEQUENCES = int(os.environ.get("SEQUENCES_OF_UPDATES", "8"))
"""For each way; a search for faults takes hundreds."""
STEPS = 4
SCHEDULES = {"all": Schedule.compute_all(STEPS), "half": Schedule.interval(STEPS, 2)}
WAYS = {
    "eager": {},
    "ahead": {"conditioning": "trajectory"},
    "compiled": {"compile": {"backend": "eager"}},
    "packed": {"compile": {"backend": "eager", "prepack": True}},
    "released": {"release": "disk"},
}
TIMES = torch.linspace(900.0, 100.0, STEPS)


class Block(nn.Module):
    """Attention whose scale comes of the conditioning, by an embedder of its own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 8)  # equal in all blocks, so that a denoiser holds one
        self.modulate = nn.Linear(8, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.feed = nn.Linear(8, 8)

    def forward(self, x, emb):
        x = x * self.modulate(torch.tanh(self.embed(emb)))[:, None]
        return self.feed(x + self.attend(x, x, x, need_weights=False)[0])


class Model(nn.Module):
    """Two blocks, which read the timestep and a prompt."""

    def __init__(self):
        super().__init__()
        self.prompt = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, hidden_states, timestep, prompt):
        emb = torch.cos(timestep[:, None] * torch.arange(1, 9)) + self.prompt(prompt)
        for block in self.blocks:
            hidden_states = block(hidden_states, emb)
        return hidden_states


def make_model():
    torch.manual_seed(0)
    model = settled(Model())
    model.blocks[1].embed.load_state_dict(model.blocks[0].embed.state_dict())
    return model


def call(model, step, seed=0):
    given = (seeded(2, 20, 8) + step + seed, TIMES[step].expand(2), seeded(2, 8))
    with torch.no_grad():
        return model(*given)


def oracle(model, actions):
    """The outputs of a run whose attentions are kept and replaced by hooks."""
    kept, found = {}, []

    def hook(site, step):
        def replace(_module, _args, output):
            if actions[step, site] == 1:
                kept[site] = output[0]
            return (kept[site], *output[1:]) if actions[step, site] == 2 else output

        return replace

    for step in range(STEPS):
        handles = [
            block.attend.register_forward_hook(hook(site, step))
            for site, block in enumerate(model.blocks)
        ]
        found.append(call(model, step))
        for handle in handles:
            handle.remove()
    return found


# ---- what is done to weights -------------------------------------------------------------


@torch.no_grad()
def add(model, path, number):
    model.get_parameter(path).add_(0.05 * number)


def step_optimiser(model, path, number):
    weight = model.get_parameter(path)
    own = nn.Parameter(weight.detach())  # shows the same memory
    own.grad = torch.full_like(own, 0.1 * number)
    torch.optim.SGD([own], lr=0.5).step()


def write_data(model, path, number):
    model.get_parameter(path).data.mul_(1 + 0.1 * number)


def set_data(model, path, number):
    weight = model.get_parameter(path)
    weight.data = weight.data.flip(0) + 0.02 * number


@torch.no_grad()
def copy_in(model, path, number):
    weight = model.get_parameter(path)
    weight.copy_(weight.flip(-1) * (1 - 0.1 * number))


def load_state(model, path, number):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state[path] = state[path] + 0.1 * number
    model.load_state_dict(state)


def assign_state(model, path, number):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state[path] = state[path] - 0.1 * number
    model.load_state_dict(state, assign=True)


def replace_parameter(model, path, number):
    owner, _, name = path.rpartition(".")
    weight = model.get_parameter(path)
    setattr(model.get_submodule(owner), name, nn.Parameter(weight * (1 + 0.1 * number)))


KINDS = [
    add,
    step_optimiser,
    write_data,
    set_data,
    copy_in,
    load_state,
    assign_state,
    replace_parameter,
]
PATHS = [
    "prompt.weight",
    "blocks.0.embed.weight",
    "blocks.1.embed.weight",
    "blocks.0.modulate.bias",
    "blocks.1.modulate.weight",
    "blocks.1.attend.in_proj_weight",
    "blocks.0.attend.out_proj.bias",
    "blocks.0.feed.weight",
]
UPDATES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(PATHS), st.integers(1, 3)),
    min_size=1,
    max_size=3,
)
RUNS = st.lists(st.tuples(UPDATES, st.sampled_from(list(SCHEDULES))), min_size=1, max_size=2)


class Subject:
    """A model, and denoisers of it by schedule, which share what was captured."""

    def __init__(self, way):
        self.model, self.way = make_model(), way
        self.transform()

    def transform(self):
        first = dqar_fx.transform(self.model, SCHEDULES["all"], **WAYS[self.way])
        first.prepare(*((seeded(2, 20, 8)), TIMES[0].expand(2), seeded(2, 8)))
        self.denoisers = {"all": first, "half": first.with_schedule(SCHEDULES["half"])}

    def check(self, name):
        """A run equals hooks on a copy of the model as it is now."""
        denoiser = self.denoisers[name]
        actions = SCHEDULES[name].resolve(range(2)).actions
        wanted = oracle(copy.deepcopy(self.model), actions)
        for step in range(STEPS):
            found = call(denoiser.attach_timesteps(TIMES) if step == 0 else denoiser, step)
            worst = (found - wanted[step]).abs().max() / wanted[step].abs().max()
            assert worst < 1e-4, (name, step, float(worst))


@torch.no_grad()
def shrink(model):
    """Keep weights of a size, so that many updates end in no infinity."""
    for parameter in model.parameters():
        if parameter.abs().max() > 3:
            parameter.mul_(0.3)


@pytest.mark.parametrize("way", WAYS)
def test_no_run_sees_old_weights(way):
    """Programs of updates, runs and schedules; the model is never made anew."""
    subject, refused = Subject(way), []

    @settings(max_examples=SEQUENCES, deadline=None, database=None, derandomize=True)
    @given(RUNS, st.booleans())
    def check(runs, is_brought_back):
        for updates, name in runs:
            if is_brought_back:
                subject.denoisers["all"].state_dict()
            for kind, path, number in updates:
                kind(subject.model, path, number)
            shrink(subject.model)
            try:
                subject.check(name)
            except DqarError as error:
                refused.append(str(error))
                subject.transform()
                subject.check(name)

    check()
    assert bool(refused) == (way == "released")
    assert all("was written to while" in error for error in refused)


@pytest.mark.parametrize("of", ["model", "denoiser"])
@pytest.mark.parametrize("path", ["prompt.weight", "blocks.1.feed.weight"])
def test_each_way_of_writing_is_seen_without_a_capture(path, of, captures):
    subject = Subject("ahead")
    subject.check("all")
    for kind in KINDS:
        if of == "model":
            kind(subject.model, path, 1)
        else:
            denoiser = subject.denoisers["all"]
            kind(denoiser, path, 1)
            subject.model = copy.deepcopy(denoiser.lend_model())
        subject.check("all")
    assert len(captures) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_equal_weights_is_written(kind):
    subject = Subject("compiled")
    for path in ("blocks.1.embed.weight", "blocks.0.embed.weight"):
        kind(subject.model, path, 1)
        subject.check("half")


@pytest.mark.parametrize("write", [add, set_data, load_state])
def test_weights_that_are_written_while_some_are_away_are_refused(write):
    model = make_model()
    denoiser = dqar_fx.transform(model, SCHEDULES["all"], release="disk")
    denoiser.attach_timesteps(TIMES)
    for step in range(STEPS):
        call(denoiser, step)
    assert denoiser.released_bytes > 0
    call(denoiser, 0)  # another run, of the same weights
    write(model, "blocks.0.feed.weight", 1)
    denoiser.reset()
    with pytest.raises(DqarError, match=r"was written to while .* released"):
        call(denoiser, 0)


@pytest.mark.parametrize("moved", [lambda m: m.to("meta"), lambda m: m.half()])
def test_a_model_that_is_moved_while_weights_are_away_is_not_followed(moved):
    model = make_model()
    denoiser = dqar_fx.transform(model, SCHEDULES["all"], release="disk")
    denoiser.attach_timesteps(TIMES)
    before = [call(denoiser, step) for step in range(STEPS)]
    assert denoiser.released_bytes > 0
    moved(model)
    denoiser.reset()
    for step in range(STEPS):
        assert torch.equal(call(denoiser, step), before[step])
