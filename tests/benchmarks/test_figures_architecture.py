"""The architecture figure is drawn from the graphs: boxes, operators, places, words."""

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Annotation

import dqar_fx
from benchmarks.figures import words
from benchmarks.figures.boxes import CONDITIONING, INPUT, OUTPUT, SLOT
from benchmarks.figures.layout import lay_out
from benchmarks.figures.places import HEIGHT
from benchmarks.figures.timeline import CELL, draw_line
from benchmarks.figures.variants import read_variants
from benchmarks.harness.geometry import Geometry
from benchmarks.harness.macs import count_trajectories
from dqar_fx import Action, Schedule


@pytest.fixture(scope="module")
def tiny():
    """A denoiser of three blocks with random weights, and its model."""
    geometry = Geometry(layers=3, width=16, heads=2, tokens=16, batch=2)
    model = geometry.build().eval()
    call = {
        "hidden_states": geometry.draw_latent(),
        "timestep": torch.zeros(2, dtype=torch.long),
        "class_labels": geometry.labels(),
    }
    schedule = Schedule.from_actions("CSRR")
    return dqar_fx.transform(model, schedule, example_inputs=call), model, call


def test_architecture_boxes_are_modules_of_the_model(tiny):
    denoiser, model, _ = tiny
    variants = read_variants(denoiser)
    block = model.transformer_blocks[1]
    for variant in variants:
        for name, level in variant.boxes:
            if name not in (INPUT, OUTPUT, CONDITIONING, SLOT, "block"):
                assert block.get_submodule(name) is not None
                assert level > 0


def test_architecture_reuse_lacks_the_projections(tiny):
    stored, computed, reused = read_variants(tiny[0])
    assert [v.action for v in (stored, computed, reused)] == [
        Action.STORE,
        Action.COMPUTE,
        Action.REUSE,
    ]
    assert set(stored.boxes) - set(computed.boxes) == {(SLOT, 0)}
    assert {name for name, _ in set(stored.boxes) - set(reused.boxes)} == {
        "norm1",
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1",
        "attn1.to_out",
    }
    assert set(reused.boxes) < set(stored.boxes)
    assert reused.boxes[SLOT, 0].operators == ()
    writers = [start[0] for start, end in stored.edges if end[0] == SLOT]
    readers = [end[0] for start, end in reused.edges if start[0] == SLOT]
    assert (writers, readers) == (["attn1.to_out"], ["block"])


@torch.no_grad()
def test_architecture_macs_are_those_of_the_trajectory(tiny):
    denoiser, model, call = tiny
    _, computed, reused = read_variants(denoiser)
    schedules = [Schedule.from_actions(actions) for actions in ("SR", "CC")]
    once, never = count_trajectories(model, call, schedules).trajectories
    assert computed.macs - reused.macs == (never - once) // 3
    attention = computed.boxes["attn1", 3]
    assert attention.macs == 2 * 2 * 2 * 16 * 16 * 8  # batch, heads, two products


def test_architecture_layout_overlaps_nowhere_and_points_down(tiny):
    variants = read_variants(tiny[0])
    layout = lay_out(variants)
    placed = list(layout.places.items())
    for i, (_, a) in enumerate(placed):
        for _, b in placed[i + 1 :]:
            apart = abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= HEIGHT
            assert apart
    for start, end in variants[0].edges:
        if SLOT not in (start[0], end[0]) and start[0] != CONDITIONING:
            assert layout.places[start].y > layout.places[end].y
    assert sorted(layout.lanes.values()) == [0, 0]  # the two residual connections, one by one
    assert len(placed) <= 25


def test_architecture_describes_operators_and_views(tiny):
    _, computed, _ = read_variants(tiny[0])
    assert words.describe_box("attn1", computed.boxes["attn1", 3]) == [
        "attn1: scaled_dot_product_attention",
        "8 views, 0.0 M MACs",
    ]
    assert words.describe_box("norm1", computed.boxes["norm1", 1]) == [
        "norm1: layer_norm, mul, add"
    ]
    assert words.show_macs(2_500_000_000) == "2.5 G"


def test_architecture_slot_is_written_read_or_left_alone(tiny):
    stored, computed, reused = read_variants(tiny[0])
    assert words.describe_slot(computed) == "slot\nnot touched"
    assert words.describe_slot(stored) == "slot\ncopy_"
    assert words.describe_slot(reused) == "slot\nof an earlier step"


def test_architecture_line_shows_each_read_of_the_slot():
    table = Schedule.from_actions("CSRRSR").resolve(["a", "b"])
    axes = Figure().subplots()
    draw_line(axes, "any", table)
    letters = [text.get_text() for text in axes.texts if text.get_text() in "CSR"]
    reads = [each.xy[0] / CELL - 0.5 for each in axes.texts if isinstance(each, Annotation)]
    assert "".join(letters) == "CSRRSR"
    assert reads == pytest.approx([2, 3, 5])
