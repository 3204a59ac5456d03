"""Models whose weights were quantised before: their own operators, on their own numbers."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn

import dqar_fx
from dqar_fx import DqarError, OptionError, Schedule, ScheduleError
from dqar_fx.calibration.fingerprint import Fingerprint
from dqar_fx.capture.capture import fork_model
from tests.helpers.hook_oracle import ForecastOracle, Oracle, taylor_forecast
from tests.helpers.models import Case, make_dit
from tests.helpers.slow_cases import slow_but

torchao = pytest.importorskip("torchao.quantization")
gguf = pytest.importorskip("gguf")

STEPS = 6
WIDTH = 32
EVERY_SECOND = Schedule.interval(STEPS, 2)


def int8(model):
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())


def int8_dynamic(model):
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())


def int4(model):
    groups = torchao.granularity.PerGroup(32)
    torchao.quantize_(model, torchao.IntxWeightOnlyConfig(torch.int4, groups))


def float8(model):
    torchao.quantize_(model, torchao.Float8WeightOnlyConfig())


def load_packed(model, kind):
    """Let linears be as diffusers has them when it loads a GGUF file."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType[kind]
    for path, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear:
            continue
        packed = gguf.quants.quantize(linear.weight.detach().numpy(), kind)
        loaded = GGUFLinear(
            linear.in_features, linear.out_features, compute_dtype=torch.float32
        )
        loaded.weight = GGUFParameter(torch.from_numpy(packed), quant_type=kind)
        loaded.bias = linear.bias
        model.set_submodule(path, loaded.requires_grad_(requires_grad=False))


def q8_0(model):
    load_packed(model, "Q8_0")


def q4_0(model):
    load_packed(model, "Q4_0")


WAYS = {each.__name__: each for each in (int8, int8_dynamic, int4, float8, q8_0, q4_0)}
OF_TORCHAO = [name for name in WAYS if not name.startswith("q")]
QUICK = ("int8", "q8_0")


def make_case(layers):
    """DiT with one head, and inputs of all linears that are multiples of 32."""
    return make_dit(2, layers, heads=1, head_dim=WIDTH, size=8)


def make(name, layers=1, **options):
    """A quantised model in a case, and a denoiser of it."""
    case = make_case(layers)
    WAYS[name](case.model)
    return case, dqar_fx.transform(case.model, EVERY_SECOND, **options)


class Quantised(NamedTuple):
    """A quantised model, and a denoiser that was captured."""

    name: str
    case: Case
    denoiser: dqar_fx.Denoiser
    said: str
    """What the capture logged."""


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module", params=slow_but(*QUICK, of=WAYS))
def quantised(request):
    logger, said = logging.getLogger("dqar_fx.capture.capture"), Said()
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    try:
        case, denoiser = make(request.param, layers=2)
        denoiser.prepare(**case.inputs(0))
    finally:
        logger.removeHandler(said)
        logger.setLevel(logging.NOTSET)
    return Quantised(request.param, case, denoiser, "\n".join(said.lines))


def held_by(model):
    """The tensors with memory of a model, which what it has for tensors may consist of."""
    found, left = [], [*model.parameters(), *model.buffers()]
    while left:
        tensor = left.pop()
        inner = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
        left += [getattr(tensor, name) for name in inner]
        found += [] if inner else [tensor]
    return found


def storages(tensors):
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@torch.no_grad()
def run(model, case, steps=STEPS):
    return [model(**case.inputs(step)).sample for step in range(steps)]


def check_reuse(case, denoiser):
    oracle = Oracle(case.model)
    for step, found in enumerate(run(denoiser, case)):
        assert torch.equal(found, oracle(denoiser.table.actions[step], **case.inputs(step)))


class SummedInFloat32(ForecastOracle):
    """Sums up what was kept as a denoiser does: weights of one multiple of 1/8 each."""

    def predict(self, past, step, order):
        past = past[: order + 1]
        units = torch.eye(len(past), dtype=torch.float64)
        weights = taylor_forecast(
            [(kept, unit) for (kept, _), unit in zip(past, units, strict=True)], step
        ).float()
        total = weights[0] * past[0][1]
        for weight, (_, value) in zip(weights[1:], past[1:], strict=True):
            total = total + weight * value
        return total


# ---- values ------------------------------------------------------------------------------


def test_reuse_equals_hooks_on_the_quantised_model(quantised):
    name, case, denoiser, _ = quantised
    plain = make_case(layers=2)
    assert not torch.equal(run(plain.model, case, 1)[0], run(case.model, case, 1)[0])
    assert denoiser.explain().said_tier == "one graph of the whole denoiser", name
    check_reuse(case, denoiser)


@pytest.mark.parametrize("order", slow_but(2, of=[1, 2]))
def test_forecasts_equal_hooks_on_the_quantised_model(quantised, order):
    _, case, first, _ = quantised
    schedule = Schedule.interval(STEPS, 2, warmup=3).forecast(order)
    denoiser = first.with_schedule(schedule)
    outputs = run(denoiser, case)
    oracle = SummedInFloat32(case.model, denoiser.table)
    assert (denoiser.table.orders == order).any()
    for step, found in enumerate(outputs):
        assert torch.equal(found, oracle(step, **case.inputs(step))), step


@pytest.mark.parametrize("name", slow_but("q8_0", of=WAYS))
def test_blocks_alone_equal_hooks_on_the_quantised_model(name):
    check_reuse(*make(name, capture="blocks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_what_is_compiled_computes_with_the_quantised_weights(name):
    case, denoiser = make(name, compile={"backend": "aot_eager"})
    for found, wanted in zip(run(denoiser, case, 1), run(case.model, case, 1), strict=True):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
    check_memory(case, denoiser)


# ---- memory ------------------------------------------------------------------------------


def check_memory(case, denoiser):
    """All that a denoiser holds of weights is the quantised model's own memory."""
    run(denoiser, case, 2)
    own = storages(held_by(case.model))
    program = denoiser.program
    assert storages(program.captured.gm.parameters()).items() <= own.items()
    assert storages(held_by(denoiser.model)).items() <= own.items()
    assert denoiser.memory.parameters == denoiser.parameter_bytes
    held = denoiser.parameter_bytes
    constants = held.total + held.merged - sum(own.values())
    assert 0 <= constants < 64, "numbers in the code of a class, such as shifts of 4 bits"
    kept = [value for memo in memos_of(program) for value in memo]
    largest = max(value.numel() for value in kept)
    assert largest < WIDTH * WIDTH, "a weight, and what it is unpacked to, has more"


def memos_of(program):
    """What conditioning gave, of each stage of each stream."""
    return [
        [value for value in outputs if value is not None]
        for stream in program.streams.values()
        for outputs in stream.memo.outputs.values()
    ]


def test_weights_are_held_once_and_quantised(quantised):
    _, case, denoiser, _ = quantised
    check_memory(case, denoiser)


OPERATORS = {"int8": "mm", "int8_dynamic": "_int_mm", "float8": "matmul"}
"""What multiplies by a weight; where it is unpacked first, ``linear`` does."""


def test_weights_are_multiplied_by_their_own_operators(quantised):
    name, case, denoiser, _ = quantised
    gm = denoiser.program.captured.gm
    target = getattr(torch.ops.aten, OPERATORS.get(name, "linear")).default
    linears = [each for each in case.model.modules() if isinstance(each, nn.Linear)]
    # the last layer calls the two linears of the first block's embedder again, and its own
    assert len(gm.graph.find_nodes(op="call_function", target=target)) >= len(linears)
    dtypes = {str(each.dtype) for each in gm.parameters()}
    assert any(dtype in str(dtypes) for dtype in ("int8", "float8"))


def test_equal_blocks_are_traced_once_where_torchao_quantised_them(quantised):
    name, _, denoiser, said = quantised
    assert "captured DiTTransformer2DModel" in said
    # the last layer reads a bias of the first block that GGUF's linear gave another name
    if "all blocks of DiTTransformer2DModel are traced" in said:
        assert name not in OF_TORCHAO
    part = "qdata" if name in OF_TORCHAO else "packed"
    path = f"transformer_blocks.1.attn1.to_q.weight_parts.{part}"
    assert path in denoiser.program.captured.gm.state_dict()


@pytest.mark.slow
def test_equal_weights_are_held_once():
    case = make_case(layers=2)
    first, second = (block.norm1.emb for block in case.model.transformer_blocks)
    second.load_state_dict(first.state_dict())
    int8(case.model)
    denoiser = dqar_fx.transform(case.model, EVERY_SECOND)
    check_reuse(case, denoiser)
    merged = denoiser.parameter_bytes.merged
    assert merged >= sum(each.nbytes for each in held_by(second))
    with torch.no_grad():
        second.timestep_embedder.linear_1.weight.qdata.mul_(-1)
    denoiser.reset()
    check_reuse(case, denoiser)
    assert denoiser.parameter_bytes.merged < merged


@pytest.mark.parametrize("name", slow_but("int8", of=WAYS))
def test_weights_of_the_conditioning_leave_for_the_disk(name):
    outputs = []
    for place in (None, "disk"):
        case, denoiser = make(name, conditioning="trajectory", release=place)
        times = torch.linspace(900, 100, STEPS)
        with torch.no_grad():
            found = [
                denoiser(**{**case.inputs(step), "timestep": time.expand(2)}).sample
                for step, time in enumerate(times)
            ]
        outputs.append(torch.stack(found))
    assert torch.equal(*outputs)
    assert denoiser.released_bytes == denoiser.parameter_bytes.released > 0


# ---- all else ----------------------------------------------------------------------------


def test_a_fork_has_tensors_of_the_same_classes(quantised):
    name, case, denoiser, _ = quantised
    for model in (denoiser.model, fork_model(denoiser.model)):
        pairs = zip(model.parameters(), case.model.parameters(), strict=True)
        for own, theirs in pairs:
            assert type(own) is type(theirs)
            assert getattr(own, "quant_type", 0) == getattr(theirs, "quant_type", 0)
    kinds = {type(each).__name__ for each in denoiser.parameters()}
    assert ("GGUFParameter" in kinds) == (name not in OF_TORCHAO)


def test_a_model_that_was_quantised_in_inference_mode_is_captured():
    case = make_case(layers=1)
    with torch.inference_mode():
        case.model.requires_grad_(requires_grad=False)
        q8_0(case.model)
    check_reuse(case, dqar_fx.transform(case.model, EVERY_SECOND))


def test_a_copy_has_quantised_weights_of_its_own(quantised):
    _, case, denoiser, _ = quantised
    copied = copy.deepcopy(denoiser)
    own, theirs = storages(held_by(copied.model)), storages(held_by(denoiser.model))
    assert own.keys().isdisjoint(theirs)
    assert sorted(own.values()) == sorted(theirs.values())
    assert torch.equal(run(copied, case, 1)[0], run(denoiser, case, 1)[0])


def test_quantised_models_are_not_pickled(quantised):
    _, case, denoiser, _ = quantised
    with pytest.raises((AttributeError, RecursionError, pickle.PicklingError)):
        pickle.dumps(case.model)
    with pytest.raises(DqarError, match="cannot be pickled"):
        pickle.dumps(denoiser)


def test_the_fingerprint_is_of_the_quantised_numbers(quantised):
    name, case, denoiser, _ = quantised
    measured = Fingerprint.of(case.model)
    measured.refuse_other(denoiser, "this")
    with pytest.raises(ScheduleError, match="another model"):
        measured.refuse_other(make_case(layers=2).model, "this")
    other = make_case(layers=2)
    flipped = other.model.proj_out_1.weight.data.flip(0)  # which each format stores otherwise
    other.model.proj_out_1.weight.data.copy_(flipped)
    WAYS[name](other.model)
    with pytest.raises(ScheduleError, match=r"of .* parameters have other values"):
        measured.refuse_other(other.model, "this")


def test_costs_are_reported(quantised):
    name, case, denoiser, _ = quantised
    report = denoiser.report(device="A100")
    assert 0 < report.macs < report.untransformed_macs
    plain = dqar_fx.transform(make_case(layers=2).model, EVERY_SECOND)
    plain.prepare(**case.inputs(0))
    assert report.macs == plain.report(device="A100").macs, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int8_dynamic"])
def test_a_quantised_denoiser_is_converted_as_its_model_is(name):
    case, denoiser = make(name)
    run(denoiser, case, 1)
    given = {**case.inputs(0), "hidden_states": case.inputs(0)["hidden_states"].bfloat16()}
    with torch.no_grad():
        found = denoiser.to(torch.bfloat16)(**given).sample
        assert torch.equal(found, case.model.to(torch.bfloat16)(**given).sample)
    assert found.dtype == torch.bfloat16


@pytest.mark.slow
def test_quantised_weights_are_not_prepacked():
    case, denoiser = make("int8", compile={"backend": "aot_eager", "prepack": True})
    with pytest.raises(OptionError, match="no linear of the step takes packed weights"):
        run(denoiser, case, 1)


# ---- what is refused ---------------------------------------------------------------------


class Coded(nn.Parameter):
    """A tensor with memory that says how it is coded, which no graph would know."""

    def __new__(cls, data, code):
        made = torch.Tensor._make_subclass(cls, data)
        made.code = code
        return made


class OfNoConsequence(nn.Parameter):
    """A class that adds nothing."""


def test_tensors_of_unknown_classes_are_refused():
    model = make_case(layers=1).model
    linear = model.transformer_blocks[0].attn1.to_q
    linear.weight = OfNoConsequence(linear.weight)
    denoiser = dqar_fx.transform(model, EVERY_SECOND)
    for owner in (model, denoiser.model):
        linear = owner.transformer_blocks[0].attn1.to_q
        linear.weight = Coded(linear.weight.detach(), "nf4")
    with pytest.raises(DqarError, match=r"attn1.to_q.weight is a Coded .* torchao"):
        dqar_fx.transform(model, EVERY_SECOND)
    with pytest.raises(DqarError, match=r"attn1.to_q.weight is a Coded .* torchao"):
        denoiser.prepare(**make_case(layers=1).inputs(0))


def test_torchao_refuses_its_int4_kernels_on_a_cpu():
    model = make_case(layers=1).model
    with pytest.raises((ImportError, NotImplementedError, AssertionError)):
        torchao.quantize_(model, torchao.Int4WeightOnlyConfig(group_size=32))


def test_weights_of_bitsandbytes_are_refused():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    case = make_case(layers=1)
    attention = case.model.transformer_blocks[0].attn1
    loaded = bitsandbytes.nn.Linear4bit(WIDTH, WIDTH)
    loaded.load_state_dict(attention.to_q.state_dict())
    attention.to_q = loaded.to("cpu")
    with pytest.raises(DqarError, match=r"attn1.to_q.weight is a Params4bit"):
        dqar_fx.transform(case.model, EVERY_SECOND)
