"""Noise levels: against formulas in numpy, and against what a denoiser is really given."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from dqar_fx import ScheduleError, signal_to_noise

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning"  # diffusers turns tensors into arrays
)


def of(kind, **options):
    """A scheduler, made in the test."""
    return pytest.param(partial(kind, **options), id="-".join([kind.__name__, *options]))


# ---- formulas ----------------------------------------------------------------------------


def kept_signal(start=1e-4, end=0.02, root=1):
    """alpha_bar of a thousand training steps; ``root=2`` for "scaled_linear"."""
    betas = np.linspace(start ** (1 / root), end ** (1 / root), 1000) ** root
    return np.cumprod(1 - betas)


def ratio(kept):
    return kept / (1 - kept)


def leading(num_steps, offset=0):
    return [i * (1000 // num_steps) + offset for i in reversed(range(num_steps))]


def trailing(num_steps):
    return [round(1000 - i * 1000 / num_steps) - 1 for i in range(num_steps)]


def spaced(num_steps):
    """Steps between both ends, the last one left out."""
    return np.linspace(0, 999, num_steps + 1).round()[:0:-1].astype(int)


def interpolated(num_steps, **betas):
    """Ratios by interpolated sigmas at timesteps that are no integers."""
    sigmas = ratio(kept_signal(**betas)) ** -0.5
    return np.interp(np.linspace(999, 0, num_steps), np.arange(1000), sigmas) ** -2.0


def warmed_up(timesteps):
    """What PNDM makes of timesteps: the second one is called twice."""
    return [timesteps[0], timesteps[1], *timesteps[1:]]


def twice_but_first(values):
    return np.repeat(values, 2)[1:]


def karras(largest, smallest, num_steps, rho=7):
    ends = largest ** (1 / rho), smallest ** (1 / rho)
    return np.linspace(*ends, num_steps) ** rho


def flow(num_steps, shift):
    """Ratios of a linear path whose time is shifted; diffusers shifts the ends as well."""
    ends = shifted(np.array([1.0, 1e-3]), shift)
    sigma = shifted(np.linspace(*ends, num_steps), shift)
    return ((1 - sigma) / sigma) ** 2


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_of_resolution(num_steps, mu):
    sigma = np.linspace(1, 1e-3, num_steps)
    sigma = np.exp(mu) / (np.exp(mu) + 1 / sigma - 1)
    return ((1 - sigma) / sigma) ** 2


@pytest.mark.parametrize("num_steps", [4, 20])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (DDIMScheduler, lambda n: ratio(kept_signal()[leading(n)])),
        (
            partial(DDIMScheduler, timestep_spacing="trailing", beta_schedule="scaled_linear"),
            lambda n: ratio(kept_signal(root=2)[trailing(n)]),
        ),
        (
            partial(DDIMScheduler, steps_offset=1, beta_start=0.00085, beta_end=0.012),
            lambda n: ratio(kept_signal(0.00085, 0.012)[leading(n, offset=1)]),
        ),
        (DDPMScheduler, lambda n: ratio(kept_signal()[leading(n)])),
        (
            partial(PNDMScheduler, skip_prk_steps=True),
            lambda n: ratio(kept_signal()[warmed_up(leading(n))]),
        ),
        (DPMSolverMultistepScheduler, lambda n: ratio(kept_signal()[spaced(n)])),
        (
            partial(DPMSolverMultistepScheduler, use_karras_sigmas=True),
            lambda n: karras(*(ratio(kept_signal()[[999, 0]]) ** -0.5), n) ** -2,
        ),
        (UniPCMultistepScheduler, lambda n: ratio(kept_signal()[spaced(n)])),
        (EulerDiscreteScheduler, interpolated),
        (
            HeunDiscreteScheduler,
            lambda n: twice_but_first(interpolated(n, start=0.00085, end=0.012)),
        ),
        (FlowMatchEulerDiscreteScheduler, lambda n: flow(n, 1)),
        (partial(FlowMatchEulerDiscreteScheduler, shift=3.0), lambda n: flow(n, 3)),
        (EDMEulerScheduler, lambda n: karras(80, 0.002, n) ** -2.0),
    ],
    ids=[
        "DDIM",
        "DDIM-trailing",
        "DDIM-offset",
        "DDPM",
        "PNDM",
        "DPMSolverMultistep",
        "DPMSolverMultistep-karras",
        "UniPC",
        "Euler",
        "Heun",
        "FlowMatch",
        "FlowMatch-shift",
        "EDMEuler",
    ],
)
def test_signal_to_noise_stock_scheduler_equals_its_formula(make, expected, num_steps):
    found = signal_to_noise(make(), num_steps)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected(num_steps), rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("mu", [0.5, 1.15])
def test_signal_to_noise_dynamic_shift_uses_mu(mu):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    found = signal_to_noise(scheduler, 7, mu=mu)
    np.testing.assert_allclose(found, flow_of_resolution(7, mu), rtol=1e-4, atol=1e-9)


# ---- what a denoiser is given ------------------------------------------------------------

SIGNAL, NOISE = torch.eye(2)[:, None, :]
"""A picture and a noise that are known, at right angles."""


def seen_by_a_perfect_denoiser(scheduler, num_steps):
    """Ratios measured in the latents of a loop whose denoiser makes no error."""
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    answer = NOISE - SIGNAL if is_flow else NOISE
    scheduler.set_timesteps(num_steps)
    latent, seen = with_noise(scheduler, SIGNAL, NOISE, scheduler.timesteps[0]), []
    for timestep in scheduler.timesteps:
        given = latent if is_flow else scheduler.scale_model_input(latent, timestep)
        seen.append(((given * SIGNAL).sum() / (given * NOISE).sum()).item() ** 2)
        latent = scheduler.step(answer, timestep, latent).prev_sample
    return np.array(seen)


def with_noise(scheduler, picture, noise, timestep):
    """The picture with as much noise as a timestep has."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return scheduler.scale_noise(picture, timestep[None], noise)
    return scheduler.add_noise(picture, noise, timestep[None])


EXACT = [
    of(DDIMScheduler, clip_sample=False),
    of(PNDMScheduler),
    of(PNDMScheduler, skip_prk_steps=True),
    of(DPMSolverMultistepScheduler),
    of(DPMSolverMultistepScheduler, use_karras_sigmas=True),
    of(UniPCMultistepScheduler),
    of(EulerDiscreteScheduler),
    of(HeunDiscreteScheduler),
    of(KDPM2DiscreteScheduler),
    of(FlowMatchEulerDiscreteScheduler),
    of(FlowMatchEulerDiscreteScheduler, shift=3.0),
]


@pytest.mark.parametrize("make", EXACT)
def test_signal_to_noise_equals_what_a_perfect_denoiser_is_given(make):
    expected = seen_by_a_perfect_denoiser(make(), 6)
    found = signal_to_noise(make(), 6)
    assert len(found) == len(expected), "one value per call of the denoiser"
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-6)


def powers(noisy, picture):
    """Power of the part that follows the picture, and of the rest; float64."""
    noisy, picture = noisy.double(), picture.double()
    part = (noisy * picture).mean() / (picture * picture).mean()
    return (part * picture).square().mean(), (noisy - part * picture).square().mean()


@pytest.mark.parametrize(
    "make",
    [
        of(DDIMScheduler, beta_schedule="scaled_linear"),
        of(EulerDiscreteScheduler),
        of(FlowMatchEulerDiscreteScheduler),
    ],
)
def test_signal_to_noise_equals_measured_powers(make):
    scheduler = make()
    found = signal_to_noise(scheduler, 5)
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(3)
    picture, noise = (torch.randn(400_000, generator=generator) for _ in range(2))
    for snr, timestep in list(zip(found, scheduler.timesteps, strict=True))[1:-1]:
        signal, rest = powers(with_noise(scheduler, picture, noise, timestep), picture)
        assert signal / rest == pytest.approx(snr, rel=0.05)


# ---- what holds of all -------------------------------------------------------------------

STOCK = [*EXACT, of(DDPMScheduler), of(EDMEulerScheduler)]


@pytest.mark.parametrize("num_steps", [4, 13])
@pytest.mark.parametrize("make", STOCK)
def test_signal_to_noise_never_falls_while_the_timestep_does(make, num_steps):
    own = make()
    own.set_timesteps(num_steps)
    found = signal_to_noise(make(), num_steps)
    assert len(found) == len(own.timesteps)
    assert (np.diff(found) >= 0).all()
    assert (found >= 0).all()


def state_of(scheduler):
    """Its attributes, spelled out."""
    return {
        name: repr(value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value)
        for name, value in vars(scheduler).items()
    }


@pytest.mark.parametrize("is_set", [False, True], ids=["fresh", "set"])
@pytest.mark.parametrize("make", STOCK)
def test_signal_to_noise_scheduler_stays_as_it_was(make, is_set):
    own = make()
    if is_set:
        own.set_timesteps(9)
    before = state_of(own)
    signal_to_noise(own, 5)
    assert state_of(own) == before


class Known:
    """A scheduler whose alphas are given."""

    def __init__(self, alphas, timesteps):
        self.alphas_cumprod, self.timesteps = torch.tensor(alphas), torch.tensor(timesteps)

    def set_timesteps(self, num_steps):
        assert num_steps == len(self.timesteps)


def test_signal_to_noise_no_noise_is_infinite_and_no_signal_zero():
    found = signal_to_noise(Known([1.0, 0.5, 0.0], [2, 1, 0]), 3)
    assert found.tolist() == [0, 1, np.inf]


def test_signal_to_noise_zero_terminal_scheduler_starts_at_zero():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    found = signal_to_noise(scheduler, 4)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert (np.diff(found) > 0).all()


def test_signal_to_noise_flow_sigmas_of_a_solver_are_a_linear_path():
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    own = copy.deepcopy(scheduler)
    own.set_timesteps(6)
    sigma = own.sigmas[:-1].double().numpy()
    found = signal_to_noise(scheduler, 6)
    np.testing.assert_allclose(found, ((1 - sigma) / sigma) ** 2)
    assert found[0] < 1e-4


def test_signal_to_noise_inverted_sigmas_begin_with_noise():
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)  # as Mochi has it
    own = copy.deepcopy(scheduler)
    own.set_timesteps(4)
    latent, expected = NOISE, []
    for timestep in own.timesteps:
        expected.append(((latent * SIGNAL).sum() / (latent * NOISE).sum()).item() ** 2)
        latent = own.step(SIGNAL - NOISE, timestep, latent).prev_sample
    np.testing.assert_allclose(signal_to_noise(scheduler, 4), expected, rtol=5e-3)


def test_signal_to_noise_equal_calls_give_equal_values():
    first, second = (signal_to_noise(UniPCMultistepScheduler(), 8) for _ in range(2))
    assert np.array_equal(first, second)


# ---- errors ------------------------------------------------------------------------------


def test_signal_to_noise_dynamic_shift_without_mu_says_so():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ScheduleError) as caught:
        signal_to_noise(scheduler, 5)
    message = str(caught.value)
    assert message.startswith("FlowMatchEulerDiscreteScheduler.set_timesteps(5) failed: ")
    assert message.count("mu") >= 2


class Half:
    """Has no timesteps."""

    def set_timesteps(self, num_steps):
        self.num_inference_steps = num_steps


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (None, "NoneType.set_timesteps(5) failed"),
        (3, "int.set_timesteps(5) failed"),
        (torch.nn.Linear(2, 2), "Linear.set_timesteps(5) failed"),
        (DDIMScheduler, "type.set_timesteps(5) failed"),
        (IPNDMScheduler(), "IPNDMScheduler has neither alphas_cumprod nor sigmas"),
        (Half(), "Half"),
    ],
    ids=["None", "number", "model", "class", "unknown_noise", "no_timesteps"],
)
def test_signal_to_noise_other_object_is_a_schedule_error(scheduler, message):
    with pytest.raises(ScheduleError) as caught:
        signal_to_noise(scheduler, 5)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("num_steps", [0, -1, 2.5, "5", None, True])
@pytest.mark.parametrize("make", [of(DDIMScheduler), of(FlowMatchEulerDiscreteScheduler)])
def test_signal_to_noise_num_steps_out_of_range_is_a_schedule_error(make, num_steps):
    with pytest.raises(ScheduleError):
        signal_to_noise(make(), num_steps)


def test_signal_to_noise_more_steps_than_trained_is_a_schedule_error():
    with pytest.raises(ScheduleError, match="DDPMScheduler"):
        signal_to_noise(DDPMScheduler(), 1001)
