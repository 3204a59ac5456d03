"""Learning-to-Cache: its counter again in a plain loop, checkpoints, and damaged ones."""

import argparse
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import dqar_fx
from dqar_fx.prior_art import read_learning_to_cache
from tests.helpers.models import make_dit
from tests.helpers.prior_art_decisions import FEW, bits_of, error_of, sites_of
from tests.helpers.table_texts import texts_of


def random_routers(seed, num_steps, blocks, top=5.0):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (f"{i}.prob", (torch.rand(2 * blocks, generator=generator) * 2 - 1) * top)
        for i in range(num_steps)
    )


def learning_to_cache_run(routers, num_steps, threshold):
    """1 and 0 per layer and step, by its counter and its features."""
    layers = len(routers["0.prob"])
    features, rows, counter = [False] * layers, [], num_steps - 1
    for index in reversed(range(num_steps)):
        if counter % 2 == 1:
            features = [False] * layers
        scores = torch.sigmoid(routers[f"{index}.prob"])
        row = [int(not features[i] or bool(scores[i] > threshold)) for i in range(layers)]
        features, counter = [True] * layers, counter - 1
        rows.append(row)
    return np.array(rows).T.tolist()


@FEW
@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_read_learning_to_cache_equals_its_counter(seed, num_steps, blocks, threshold):
    routers = random_routers(seed, num_steps, blocks)
    schedule = read_learning_to_cache({"routers": routers}, num_steps, threshold=threshold)
    table = schedule.resolve(sites_of(blocks))
    assert bits_of(table) == learning_to_cache_run(routers, num_steps, threshold)
    assert schedule.sites == ("self", "feed_forward")
    counted = read_learning_to_cache({"routers": routers}, threshold=threshold)
    assert counted.num_steps == num_steps
    assert counted.resolve(sites_of(blocks)) == table


def test_read_learning_to_cache_is_good_for_its_own_number_of_steps():
    schedule = read_learning_to_cache(random_routers(0, 6, 2))
    assert schedule.for_run(6) is schedule
    said = error_of(lambda: schedule.for_run(7))
    assert said.startswith("the router of Learning-to-Cache is good for 6 steps, but the run")


def logits(*scores):
    return torch.logit(torch.tensor(scores))


ROUTERS = {
    "3.prob": logits(0.01, 0.01),
    "2.prob": logits(0.05, 0.3),
    "1.prob": logits(0.01, 0.01),
    "0.prob": logits(0.3, 0.05),
}


def test_read_learning_to_cache_golden():
    table = read_learning_to_cache(ROUTERS, 4).resolve(sites_of(1))
    assert texts_of(table) == ["SRCC", "CCSR"]
    assert [table.why(step, 1).partition(": ")[2] for step in range(4)] == [
        "COMPUTE, nothing is kept yet",
        "COMPUTE, router score 0.300 is above 0.1",
        "STORE, Learning-to-Cache computes everything at every other step",
        "REUSE of step 2, router score 0.050 is not above 0.1",
    ]


def test_read_learning_to_cache_score_at_the_threshold_is_reused():
    routers = {"0.prob": torch.zeros(2), "1.prob": torch.zeros(2)}
    schedule = read_learning_to_cache(routers, 2, threshold=0.5)
    assert texts_of(schedule.resolve(sites_of(1))) == ["SR", "SR"]


@pytest.mark.parametrize(
    "extra", [{}, {"opt": {"state": {}}, "args": argparse.Namespace(lr=1)}]
)
def test_read_learning_to_cache_checkpoint_of_torch(tmp_path, extra):
    routers = random_routers(0, 6, 2)
    torch.save({"routers": routers, **extra}, tmp_path / "router.pt")
    found = read_learning_to_cache(tmp_path / "router.pt", 6)
    again = read_learning_to_cache(str(tmp_path / "router.pt"), 6)
    expected = read_learning_to_cache(routers, 6).resolve(sites_of(2))
    assert found.resolve(sites_of(2)) == again.resolve(sites_of(2)) == expected


@pytest.mark.parametrize("prefix", ["", "routers."])
def test_read_learning_to_cache_checkpoint_of_safetensors(tmp_path, prefix):
    routers = random_routers(1, 6, 2)
    path = tmp_path / "router.safetensors"
    save_file({prefix + key: value for key, value in routers.items()}, path)
    found = read_learning_to_cache(path, 6).resolve(sites_of(2))
    assert found == read_learning_to_cache(routers, 6).resolve(sites_of(2))


class Touch:
    """A pickle that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_read_learning_to_cache_runs_no_code_of_a_checkpoint(tmp_path):
    torch.save({"routers": Touch(tmp_path / "made")}, tmp_path / "router.pt")
    said = error_of(lambda: read_learning_to_cache(tmp_path / "router.pt", 4))
    assert "no Learning-to-Cache router can be read from" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["router.pt", "router.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04broken"])
def test_read_learning_to_cache_damaged_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    said = error_of(lambda: read_learning_to_cache(path, 4))
    assert said.startswith(f"no Learning-to-Cache router can be read from {path}: ")


def test_read_learning_to_cache_missing_file(tmp_path):
    said = error_of(lambda: read_learning_to_cache(tmp_path / "none.pt", 4))
    assert "FileNotFoundError" in said


@pytest.mark.parametrize(
    ("router", "num_steps", "message"),
    [
        (ROUTERS, 0, "num_steps must be at least 1, found 0"),
        (
            ROUTERS,
            5,
            "expected 5 routers of Learning-to-Cache, one per step, 0.prob to 4.prob; found 4 "
            "entries, such as '3.prob'",
        ),
        (
            {"0.weight": torch.zeros(2)},
            1,
            "expected 1 routers of Learning-to-Cache, one per step, 0.prob to 0.prob; found 1 "
            "entries, such as '0.weight'",
        ),
        (
            {},
            1,
            "expected 1 routers of Learning-to-Cache, one per step, 0.prob to 0.prob; found 0 "
            "entries, such as None",
        ),
        (
            {"routers": [torch.zeros(2)]},
            1,
            'expected {"routers": {"0.prob": logits, ...}} of Learning-to-Cache, found list',
        ),
        (
            {"0.prob": torch.zeros(3)},
            1,
            "a router of Learning-to-Cache has two logits per block, attention and "
            "feed-forward, in one row; found shapes [(3,)]",
        ),
        (
            {"0.prob": torch.zeros(2), "1.prob": torch.zeros(4)},
            2,
            "a router of Learning-to-Cache has two logits per block, attention and "
            "feed-forward, in one row; found shapes [(2,), (4,)]",
        ),
        (
            {"0.prob": torch.full((2,), float("nan"))},
            1,
            "a router of Learning-to-Cache has a logit that is no number",
        ),
    ],
)
def test_read_learning_to_cache_wrong_content_named(router, num_steps, message):
    assert error_of(lambda: read_learning_to_cache(router, num_steps)) == message


def test_read_learning_to_cache_wrong_threshold():
    said = error_of(lambda: read_learning_to_cache(ROUTERS, 4, threshold=float("nan")))
    assert said == "threshold must be at least 0, found nan"


@pytest.mark.parametrize(
    "sites",
    [
        sites_of(2),
        sites_of(1)[:1],
        ["transformer_blocks.0.attn1", "transformer_blocks.1.ff"],
        sites_of(2, ("attn1",)),
    ],
)
def test_read_learning_to_cache_other_layers(sites):
    said = error_of(lambda: read_learning_to_cache(ROUTERS, 4).resolve(sites))
    assert said.startswith(
        "the router scores 2 layers, attention and feed-forward of 1 blocks in turn, but "
        f"there are {len(sites)} sites, {sites[0]} to {sites[-1]}. "
    )


@torch.no_grad()
def test_read_learning_to_cache_runs_on_a_dit():
    case, routers = make_dit(layers=2), random_routers(3, 6, 2)
    schedule = read_learning_to_cache(routers, 6, threshold=0.5)
    denoiser = dqar_fx.transform(case.model, schedule)
    for step in range(6):
        denoiser(**case.inputs(step))
    assert denoiser.table.sites == tuple(sites_of(2))
    assert bits_of(denoiser.table) == learning_to_cache_run(routers, 6, 0.5)
    assert 0 < denoiser.table.reuse_ratio < 1
