"""Inside a stock diffusers pipeline, with guidance, no other line changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline

import dqar_fx
from dqar_fx import Schedule
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import make_dit, seeded
from tests.helpers.slow_cases import slow_but

STEPS = 5


@pytest.fixture(scope="module")
def transformer():
    model = make_dit(layers=3).model
    model.register_to_config(num_embeds_ada_norm=1000)
    for block in model.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        weight = seeded(1001, embedder.embedding_table.embedding_dim)
        embedder.embedding_table = torch.nn.Embedding.from_pretrained(weight)
    return model


def make_pipeline(transformer, scheduler=DDIMScheduler):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4
    ).eval()
    pipe = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, labels=(1, 2), seed=0, steps=STEPS):
    torch.manual_seed(seed)  # the pipeline gives its scheduler no generator
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        list(labels),
        guidance_scale=1.5,
        generator=generator,
        num_inference_steps=steps,
        output_type="np",
    ).images


class Hooked(torch.nn.Module):
    """The original in the pipeline, driven by the rows of a table."""

    def __init__(self, model, actions):
        super().__init__()
        self.model, self.oracle, self.actions, self.step = model, Oracle(model), actions, 0

    config = property(lambda self: self.model.config)
    dtype = property(lambda self: self.model.dtype)
    device = property(lambda self: self.model.device)

    def forward(self, *args, **kwargs):
        with self.oracle.hooked(self.actions[self.step % len(self.actions)]):
            self.step += 1
            return self.model(*args, **kwargs)


@pytest.mark.parametrize(
    "scheduler", slow_but(DDPMScheduler, of=[DDIMScheduler, DDPMScheduler])
)
def test_pipeline_gives_the_pictures_of_the_hook_oracle(transformer, scheduler):
    pipe = make_pipeline(transformer, scheduler)
    plain = generate(pipe)
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.linear(STEPS, warmup=2))
    pictures = generate(pipe)
    hooked = make_pipeline(Hooked(transformer, pipe.transformer.table.actions), scheduler)
    assert np.array_equal(pictures, generate(hooked))
    assert not np.array_equal(pictures, plain)


def test_pipeline_compute_all_gives_the_original_pictures(transformer):
    pipe = make_pipeline(transformer)
    plain = generate(pipe)
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.compute_all(STEPS))
    assert np.array_equal(generate(pipe), plain)


def test_pipeline_second_run_remembers_nothing(transformer):
    pipe = make_pipeline(transformer)
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.interval(STEPS, 2))
    first = generate(pipe, labels=(1, 2), seed=0)
    generate(pipe, labels=(5, 7), seed=1)
    generate(pipe, labels=(3,), seed=2)  # another batch size
    assert np.array_equal(generate(pipe, labels=(1, 2), seed=0), first)


def test_pipeline_broken_off_run_leaves_nothing(transformer):
    pipe = make_pipeline(transformer)
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.from_actions("SRRRR"))
    first = generate(pipe, seed=0)
    for broken_at in (1, 2, 4):

        def stop(module, args, kwargs, output, counter=[broken_at]):  # noqa: B006
            counter[0] -= 1
            if counter[0] == 0:
                raise KeyboardInterrupt

        handle = pipe.transformer.register_forward_hook(stop, with_kwargs=True)
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, labels=(8, 9), seed=5)
        handle.remove()
        assert np.array_equal(generate(pipe, seed=0), first)


def test_pipeline_with_more_steps_than_the_table_is_refused_early(transformer):
    pipe = make_pipeline(transformer)
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.interval(STEPS, 2))
    with pytest.raises(dqar_fx.StepError, match=r"step 1 of 9 steps.* has 5"):
        generate(pipe, steps=9)
    generate(pipe)  # and works on


def test_pipeline_with_fewer_steps_than_the_table_says_so(transformer):
    pipe = make_pipeline(transformer)
    pipe.transformer = dqar_fx.transform(pipe.transformer, Schedule.interval(STEPS, 2))
    with pytest.warns(UserWarning, match="has 3 steps but the branch table 5"):
        generate(pipe, steps=3)


def test_pipeline_two_denoisers_of_one_model_do_not_meet(transformer):
    one, two = (make_pipeline(transformer) for _ in range(2))
    one.transformer = dqar_fx.transform(transformer, Schedule.interval(STEPS, 2))
    two.transformer = dqar_fx.transform(transformer, Schedule.linear(STEPS, warmup=1))
    apart = generate(one), generate(two)
    assert np.array_equal(generate(one), apart[0])
    assert np.array_equal(generate(two), apart[1])
