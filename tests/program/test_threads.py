"""Threads that make graphs at a time: captures, tables of runs, and lowered regions."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from dqar_fx import Schedule, transform
from tests.helpers.tiny_denoiser import TOKENS, WIDTH, make_tiny, run_with

NUM_THREADS, STEPS = 4, 4


def test_threads_that_begin_at_a_time_each_get_what_they_ask_for():
    """Each captures a batch size of its own, lowers rows, and reads its own kept outputs."""
    tiny = make_tiny()
    denoiser = transform(tiny, Schedule.interval(every=2))
    barrier = threading.Barrier(NUM_THREADS)

    @torch.no_grad()
    def generate(batch):
        generator = torch.Generator().manual_seed(batch)
        prompt = torch.randn(batch, TOKENS, WIDTH, generator=generator)
        kept, equal = {}, []
        barrier.wait()
        with denoiser.session() as session:
            for step, time in enumerate(torch.linspace(900, 100, STEPS)):
                latent = torch.randn(batch, TOKENS, WIDTH, generator=generator)
                inputs = {"hidden_states": latent, "timestep": time.reshape(1)}
                inputs["encoder_hidden_states"] = prompt
                output = denoiser(**inputs)
                expected, computed = run_with(tiny, inputs, kept if step % 2 else {})
                kept |= computed
                equal.append(torch.equal(output, expected))
        (run,) = session.runs
        return equal, run.num_reused

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(generate, range(1, NUM_THREADS + 1)))
    assert found == [([True] * STEPS, 4)] * NUM_THREADS
