"""Diffusers models that read their conditioning on the host, against the untouched ones."""

import pytest
import torch

import dqar_fx
from tests.helpers.host_read_models import MODELS

STEPS = 4


class Oracle:
    """The model with plain hooks on the modules of a table's sites."""

    def __init__(self, model, table):
        self.model, self.table, self.kept = model, table, {}

    @torch.no_grad()
    def __call__(self, step, stream=0, **inputs):
        handles = [
            self.model.get_submodule(path).register_forward_hook(self.hook(step, stream, i))
            for i, path in enumerate(self.table.sites)
        ]
        try:
            return self.model(**inputs, return_dict=False)[0]
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, step, stream, site):
        def replace(_module, _args, output):
            if self.table.actions[step, site] == 2:
                return self.kept[stream, site]
            is_tuple = isinstance(output, tuple)
            kept = tuple(map(torch.clone, output)) if is_tuple else output.clone()
            self.kept[stream, site] = kept
            return output

        return replace


def check_run(denoiser, model, requests):
    """Each step of a run, of one or more streams, equals the oracle's."""
    oracle = None
    for step in range(STEPS):
        for stream, case in enumerate(requests):
            inputs = case.inputs(step)
            found = denoiser(**inputs, return_dict=False)[0]
            oracle = oracle or Oracle(model, denoiser.table)
            assert torch.equal(found, oracle(step, stream, **inputs))
    assert 0 < denoiser.table.reuse_ratio < 1


@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_plain_hooks_bit_for_bit(name):
    case = MODELS[name]()
    denoiser = dqar_fx.transform(case.model, dqar_fx.Schedule.interval(STEPS, 2))
    check_run(denoiser, case.model, [case])
    assert denoiser.explain().reads
    assert len(denoiser.captured_programs()) == 1
