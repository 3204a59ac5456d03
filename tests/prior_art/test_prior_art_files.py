"""Files of other systems: read again in plain loops, on a small DiT, and damaged ones."""

import argparse
import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import dqar_fx
from dqar_fx.prior_art import read_learning_to_cache, read_smoothcache
from tests.helpers.models import make_dit
from tests.helpers.prior_art_decisions import FEW, error_of
from tests.helpers.table_texts import texts_of


def bits_of(table):
    """1 where a site computes, per site."""
    return [[int(letter in "CS") for letter in text] for text in texts_of(table)]


def sites_of(blocks, parts=("attn1", "ff")):
    return [f"transformer_blocks.{i}.{part}" for i in range(blocks) for part in parts]


# ---- SmoothCache ---------------------------------------------------------------------------


def smoothcache_run(schedule, paths, num_steps):
    """1 and 0 per site and step, by the lookup of the helper and a cache per module."""
    found = []
    for path in paths:
        component, block = path.split(".")[-1], path.split(".")[-2]
        row, cache = [], None
        for step in range(num_steps):
            plan = schedule.get(f"{component}-{block}", schedule.get(component))
            skip = plan is not None and plan[step] == 0
            row.append(0 if skip and cache is not None else 1)
            cache = step if row[-1] else cache
        found.append(row)
    return found


@st.composite
def smoothcache_schedules(draw, blocks=3):
    num_steps = draw(st.integers(1, 12))
    keys = [*("attn1", "ff"), *(f"{c}-{b}" for c in ("attn1", "ff") for b in range(blocks))]
    chosen = draw(st.lists(st.sampled_from(keys), min_size=1, unique=True))
    rest = st.lists(st.integers(0, 1), min_size=num_steps - 1, max_size=num_steps - 1)
    return {key: [1, *draw(rest)] for key in chosen}, num_steps


@FEW
@given(smoothcache_schedules())
def test_read_smoothcache_equals_the_lookup_of_its_helper(made):
    content, num_steps = made
    schedule = read_smoothcache(content)
    assert schedule.num_steps == num_steps
    paths = sites_of(3)
    assert bits_of(schedule.resolve(paths)) == smoothcache_run(content, paths, num_steps)
    assert schedule == read_smoothcache(content)
    assert hash(schedule) == hash(read_smoothcache(content))


GOLDEN = {"attn1": [1, 0, 0, 1, 0, 1], "ff": [1, 1, 0, 1, 1, 1], "ff-1": [1, 0, 0, 0, 0, 1]}


def test_read_smoothcache_golden_from_a_file(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(GOLDEN))
    schedule = read_smoothcache(path)
    assert schedule == read_smoothcache(str(path)) == read_smoothcache(GOLDEN)
    assert schedule.sites == ("*.attn1", "*.ff")
    table = schedule.resolve(sites_of(2))
    assert texts_of(table) == ["SRRSRC", "CSRCCC", "SRRSRC", "SRRRRC"]
    assert table.why(2, 3).endswith(
        "REUSE of step 0, the SmoothCache schedule has ff-1 at 0: reuse"
    )
    assert table.why(3, 0).endswith("STORE, the SmoothCache schedule has attn1 at 1: compute")


def test_read_smoothcache_what_is_not_named_computes():
    table = read_smoothcache({"attn1": [1, 0, 0]}).resolve(sites_of(1))
    assert texts_of(table) == ["SRR", "CCC"]
    assert table.why(1, 1).endswith("COMPUTE, the SmoothCache schedule does not name ff")


def test_read_smoothcache_names_of_another_model():
    original = {"attn": [1, 0, 1], "mlp": [1, 1, 0], "attn-1": [1, 1, 1]}
    schedule = read_smoothcache(original, names={"attn": "attn1", "mlp": "ff"})
    renamed = {"attn1": [1, 0, 1], "ff": [1, 1, 0], "attn1-1": [1, 1, 1]}
    assert schedule == read_smoothcache(renamed)
    assert schedule.sites == ("*.attn1", "*.ff")


@torch.no_grad()
def test_read_smoothcache_runs_on_a_dit():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(case.model, read_smoothcache(GOLDEN))
    for step in range(6):
        denoiser(**case.inputs(step))
    assert denoiser.table.sites == tuple(sites_of(2))
    assert texts_of(denoiser.table) == ["SRRSRC", "CSRCCC", "SRRSRC", "SRRRRC"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attn1": [0, 1]}, "component 'attn1' of the SmoothCache schedule has 0 (reuse) at"),
        ({"attn1": [1, 2]}, "component 'attn1' of the SmoothCache schedule has 2 at step 1; "),
        ({"ff": [1, 0.0]}, "component 'ff' of the SmoothCache schedule has 0.0 at step 1; "),
        ({"ff": [1, None]}, "component 'ff' of the SmoothCache schedule has None at step 1"),
        ({"ff": []}, "component 'ff' of the SmoothCache schedule needs one 1 or 0 per step"),
        ({"ff": 1}, "component 'ff' of the SmoothCache schedule needs one 1 or 0 per step"),
        (
            {"attn1": [1, 0], "ff": [1, 0, 1]},
            "components of a SmoothCache schedule need one length, found "
            "{'attn1': 2, 'ff': 3}",
        ),
        ({}, "a SmoothCache schedule has a list per component, "),
    ],
)
def test_read_smoothcache_wrong_content_named(content, message):
    assert error_of(lambda: read_smoothcache(content)).startswith(message)


def test_read_smoothcache_wrong_names():
    said = error_of(lambda: read_smoothcache(GOLDEN, names={"attn": "attn1"}))
    assert said == (
        "names has 'attn', which is no component of the SmoothCache schedule; its components "
        "are attn1, ff"
    )
    said = error_of(lambda: read_smoothcache(GOLDEN, names={"attn1": "ff"}))
    assert "gives two components of the SmoothCache schedule one name" in said


@pytest.mark.parametrize(
    ("key", "sites"),
    [("attn", sites_of(2)), ("ff-2", sites_of(2)), ("ff", sites_of(2, ("attn1",)))],
)
def test_read_smoothcache_component_without_a_site(key, sites):
    schedule = read_smoothcache({key: [1, 0, 1]})
    said = error_of(lambda: schedule.resolve(sites))
    ends = "attn1, ff" if len(sites) == 4 else "attn1"
    assert said.startswith(
        f"component {key!r} of the SmoothCache schedule means none of {len(sites)} sites, "
        f"whose paths end in {ends}. Give the model's own names"
    )


def test_read_smoothcache_site_that_is_the_root():
    assert texts_of(read_smoothcache({"attn": [1, 0]}).resolve(["attn"])) == ["SR"]


@pytest.mark.parametrize("text", ["[1, 0]", '"attn1"', "{", "", "null"])
def test_read_smoothcache_damaged_file(tmp_path, text):
    path = tmp_path / "schedule.json"
    path.write_text(text)
    said = error_of(lambda: read_smoothcache(path))
    assert "SmoothCache schedule" in said
    assert '{"attn1": [1, 0, ...], ...}' in said


def test_read_smoothcache_missing_file(tmp_path):
    said = error_of(lambda: read_smoothcache(tmp_path / "none.json"))
    assert "FileNotFoundError" in said


# ---- Learning-to-Cache ---------------------------------------------------------------------


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
