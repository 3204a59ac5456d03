"""A denoiser and ``torch.compile``, in any order: it compiles by itself, as it was told."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import DqarError, OptionError, Schedule
from tests.helpers.models import make_dit

NAMES = ("hidden_states", "timestep", "class_labels")
SCHEDULE = Schedule.interval(3, 2)


class Graphs(list):
    """A backend that counts graphs, and runs them as they are."""

    def __call__(self, gm, _inputs):
        self.append(gm)
        return gm.forward


@pytest.fixture(autouse=True)
def clean(fresh_counters):
    pass


@pytest.fixture
def graphs():
    return Graphs()


@pytest.fixture
def case():
    return make_dit(layers=2)


def run(denoiser, case, seed=0):
    with torch.no_grad():
        return [denoiser(**case.inputs(step, seed)).sample for step in range(3)]


def run_twice(denoiser, case, graphs):
    """Outputs of a request, and the number of graphs, to which a second one adds none."""
    found = run(denoiser, case)
    number = len(graphs)
    run(denoiser, case, seed=1)
    assert len(graphs) == number
    return found, number


def check(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def wanted():
    """Outputs of a denoiser that is compiled as documented, and how many graphs that takes."""
    case, graphs = make_dit(layers=2), Graphs()
    return run_twice(transform(case, graphs), case, graphs)


@pytest.fixture(scope="module")
def eager():
    """Outputs of a denoiser that is not compiled."""
    case = make_dit(layers=2)
    return run(transform(case), case)


def transform(case, graphs=None):
    how = None if graphs is None else {"backend": graphs}
    return dqar_fx.transform(case.model, SCHEDULE, compile=how)


# ---- compiled after transform ------------------------------------------------------------


def test_a_compiled_denoiser_that_is_compiled_again_is_as_it_was(case, graphs, wanted):
    compiled = torch.compile(transform(case, graphs), backend=graphs)
    found, number = run_twice(compiled, case, graphs)
    check(found, wanted[0])
    assert number == wanted[1] > 0
    assert not counters["graph_break"]


def test_a_denoiser_that_is_not_compiled_says_so_where_it_is_compiled(case, graphs, eager):
    compiled = torch.compile(transform(case), backend=graphs)
    with pytest.warns(UserWarning, match="does nothing to it") as said:
        found, number = run_twice(compiled, case, graphs)
    assert len(said) == 1
    check(found, eager)
    assert number == 0
    assert not counters["graph_break"]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("method", ["compile", "compile_repeated_blocks"])
def test_compile_of_a_denoiser_is_that_of_transform(method, is_late, case, graphs, wanted):
    denoiser = transform(case)
    if is_late:
        run(denoiser, case)
    getattr(denoiser, method)(backend=graphs, fullgraph=True)
    denoiser.reset()
    found, number = run_twice(denoiser, case, graphs)
    check(found, wanted[0])
    assert number == wanted[1]
    assert not counters["graph_break"]


def test_compiled_code_around_a_denoiser_breaks_its_graph_there_once(case, graphs, wanted):
    denoiser = transform(case, graphs)

    @torch.compile(backend=graphs)
    def step(hidden_states, timestep, class_labels):
        latent = 2 * hidden_states
        return -denoiser(latent / 2, timestep=timestep, class_labels=class_labels).sample

    def call(seed):
        given = (case.inputs(step, seed) for step in range(3))
        return [-step(*(inputs[name] for name in NAMES)) for inputs in given]

    check(call(0), wanted[0])
    number = len(graphs)
    call(1)
    assert len(graphs) == number == wanted[1] + 2
    assert sum(counters["graph_break"].values()) == 1


def test_a_denoiser_is_no_part_of_a_full_graph(case, graphs):
    denoiser = transform(case, graphs)
    with pytest.raises(DqarError, match=r"denoiser\.compile\(\.\.\.\)"):
        torch.compile(denoiser, backend=graphs, fullgraph=True)(**case.inputs(0))
    around = torch.compile(lambda **given: denoiser(**given), backend=graphs, fullgraph=True)
    with pytest.raises(Unsupported, match=r"denoiser\.compile\(\.\.\.\)"):
        around(**case.inputs(0))


@pytest.mark.parametrize(
    "keywords", [{"backend": "no"}, {"mode": "no"}, {"no": 1}, {"options": {"no": 1}}]
)
def test_keywords_that_torch_does_not_take_are_refused_at_once(keywords, case):
    denoiser = transform(case)
    calls = (
        lambda: denoiser.compile(**keywords),
        lambda: denoiser.compile_repeated_blocks(**keywords),
        lambda: dqar_fx.transform(case.model, SCHEDULE, compile=keywords),
    )
    for call in calls:
        with pytest.raises(OptionError, match=r"torch\.compile does not take that"):
            call()


# ---- compiled before transform -----------------------------------------------------------


def compile_blocks(model, graphs):
    for block in model.transformer_blocks:
        block.compile(backend=graphs)
    return model


def compile_model(model, graphs):
    model.compile(backend=graphs)
    return model


def wrap_model(model, graphs):
    return torch.compile(model, backend=graphs)


def wrap_blocks(model, graphs):
    for number, block in enumerate(model.transformer_blocks):
        model.transformer_blocks[number] = torch.compile(block, backend=graphs)
    return model


def wrap_forward(model, graphs):
    model.forward = torch.compile(model.forward, backend=graphs)
    return model


WAYS = (compile_blocks, compile_model, wrap_model, wrap_blocks, wrap_forward)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_compiled_is_looked_through(way, is_compiled, case, graphs, wanted, eager):
    names = list(case.model.state_dict())
    case.model = way(case.model, Graphs())
    denoiser = transform(case, graphs if is_compiled else None)
    found, number = run_twice(denoiser, case, graphs)
    check(found, wanted[0] if is_compiled else eager)
    assert number == (wanted[1] if is_compiled else 0)
    assert list(denoiser.state_dict()) == names
    assert not counters["graph_break"]


# ---- in a pipeline -----------------------------------------------------------------------


def make_pipeline(case):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    pipe = DiTPipeline(case.model, vae, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe):
    seed = torch.Generator().manual_seed(3)
    options = {"guidance_scale": 1.0, "num_inference_steps": 3, "output_type": "np"}
    return pipe([1], generator=seed, **options).images


def test_a_pipeline_is_known_around_a_compiled_denoiser(case):
    pipe = dqar_fx.enable(make_pipeline(case), Schedule.interval(every=2), compile="regional")
    denoiser = pipe.transformer
    denoiser.compile(backend="eager")
    pipe.transformer = torch.compile(denoiser, backend="eager")
    draw(pipe)
    (logged,) = denoiser.runs
    assert logged.num_reused == logged.num_promised > 0
    with pytest.raises(dqar_fx.CaptureError, match="transformed already"):
        dqar_fx.transform(pipe.transformer, SCHEDULE)
    with pytest.raises(DqarError, match="transformed already"):
        dqar_fx.enable(DiTPipeline(pipe.transformer, pipe.vae, pipe.scheduler), SCHEDULE)
    assert dqar_fx.disable(pipe).transformer is case.model


def test_a_model_with_compiled_blocks_is_given_back_as_it_was(case):
    pipe = make_pipeline(case)
    blocks = list(wrap_blocks(case.model, Graphs()).transformer_blocks)
    dqar_fx.enable(pipe, Schedule.interval(every=2))
    draw(pipe)
    dqar_fx.disable(pipe)
    assert list(pipe.transformer.transformer_blocks) == blocks


def test_another_component_is_compiled_as_without_a_denoiser(case):
    pictures, numbers = [], []
    for is_enabled in (False, True):
        graphs, pipe = Graphs(), make_pipeline(case)
        pipe.vae.decode = torch.compile(pipe.vae.decode, backend=graphs)
        if is_enabled:
            dqar_fx.enable(pipe, Schedule.compute_all(3))
        pictures.append(torch.from_numpy(draw(pipe)))
        numbers.append(len(graphs))
        torch._dynamo.reset()
    assert torch.equal(*pictures)
    assert numbers[0] == numbers[1] > 0
