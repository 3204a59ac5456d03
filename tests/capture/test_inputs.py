"""Which inputs play which part, by their names; and which a graph cannot have."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import dqar_fx
from dqar_fx.capture.inputs import Roles


def graph_of(*names):
    """A graph with float tensors for inputs."""
    graph = fx.Graph()
    for name in names:
        graph.placeholder(name).meta["val"] = torch.ones(1)
    graph.output(())
    return fx.GraphModule({}, graph)


@pytest.mark.parametrize(
    ("names", "timestep", "latents"),
    [
        (("hidden_states", "timestep", "r_timestep"), 1, (0,)),
        (("r_timestep", "hidden_states", "timestep"), 2, (1,)),
        (("position_ids", "vision_tokens_0", "vision_timesteps"), 2, (1,)),
        (
            ("vision_tokens_0", "vision_timesteps", "sound_tokens_0", "sound_timesteps"),
            1,
            (0, 2),
        ),
        (("sample", "sigma"), 1, (0,)),
        (("hidden_states", "timestep_cond", "added_time_ids"), None, (0,)),
    ],
)
def test_timestep_and_latents_are_known_by_name(names, timestep, latents):
    roles = Roles.of(graph_of(*names))
    assert (roles.timestep, roles.latents) == (timestep, latents)


class Cache:
    """What a model keeps keys and values in."""

    def __init__(self):
        self.keys = torch.ones(1)


class Reader(nn.Module):
    def forward(self, hidden_states, timestep, caches):
        return hidden_states * timestep + caches[0].keys


def test_an_argument_of_another_kind_is_named():
    denoiser = dqar_fx.transform(Reader(), dqar_fx.Schedule.interval(4, 2))
    with pytest.raises(dqar_fx.CaptureError, match="caches is or has a Cache, of which"):
        denoiser(torch.ones(1, 2), torch.ones(1), caches=[Cache()])
