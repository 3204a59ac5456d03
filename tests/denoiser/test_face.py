"""What is done to a model in a pipeline is done to a denoiser that stands in its place."""

import copy
import pickle

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.denoiser.denoiser import Denoiser
from tests.helpers.models import (
    Attention,
    make_dit,
    make_flux,
    make_pixart,
    make_sd3,
    seeded,
    settled,
)
from tests.helpers.sd3_pipeline import make_tiny_sd3, put_in_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
    pytest.mark.filterwarnings("ignore:Adapter b was active"),
    pytest.mark.filterwarnings("ignore:Keyword arguments .* are not expected"),
]
MAKERS = [make_dit, make_pixart, make_sd3, make_flux]
COMPUTE = Schedule.compute_all(4)
CONFIG = LoraConfig(
    r=4, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False
)


def make_model():
    """SD3, and one call of it."""
    return make_tiny_sd3(4), {
        "hidden_states": seeded(1, 4, 4, 4),
        "encoder_hidden_states": seeded(1, 4, 16),
        "pooled_projections": seeded(1, 24),
        "timestep": torch.tensor([900.0]),
    }


def run(model, given, **more):
    with torch.no_grad():
        return model(**given, **more).sample


def add_adapters(pipe, *names):
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        pipe.transformer.add_adapter(CONFIG, name)


@pytest.fixture(scope="module")
def lora():
    """Weights of an adapter, as a file has them."""
    model, _ = make_model()
    torch.manual_seed(5)
    model.add_adapter(CONFIG, "donor")
    state = get_peft_model_state_dict(model, adapter_name="donor")
    return {f"transformer.{name}": 3 * value for name, value in state.items()}


# ---- the class ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_a_denoiser_is_an_instance_of_the_models_class(make):
    model = make().model
    denoiser = dqar_fx.transform(model, COMPUTE)
    kind = type(denoiser)
    assert isinstance(denoiser, Denoiser)
    assert isinstance(denoiser, type(model))
    assert issubclass(kind, ModelMixin)
    assert (kind.__name__, kind.__module__) == (type(model).__name__, type(model).__module__)
    assert kind in [type(model)]
    assert {type(model): 1}[kind] == 1
    assert kind is not type(model)
    assert kind is type(denoiser.with_schedule(Schedule.interval(4, 2)))


@pytest.mark.parametrize("make", MAKERS)
def test_tensors_and_modules_have_the_models_names(make):
    model = make().model
    denoiser = dqar_fx.transform(model, COMPUTE)
    for names in ("named_parameters", "named_buffers", "named_modules", "named_children"):
        found, wanted = (dict(getattr(each, names)()) for each in (denoiser, model))
        assert list(found) == list(wanted)
    assert list(denoiser.state_dict()) == list(model.state_dict())
    assert denoiser.config == model.config


def test_every_name_of_the_models_class_is_the_models():
    model, _ = make_model()
    denoiser = dqar_fx.transform(model, COMPUTE)
    denoiser.model.anything = [1]
    assert denoiser.anything is denoiser.model.anything
    for name in ("attn_processors", "is_gradient_checkpointing"):
        assert getattr(denoiser, name) == getattr(denoiser.model, name)
    assert denoiser._no_split_modules == model._no_split_modules
    assert type(denoiser).from_config == SD3Transformer2DModel.from_config
    stock = denoiser.from_config(denoiser.config)
    assert type(stock) is SD3Transformer2DModel


class Scaled(Attention):
    factor = 1.0

    def forward(self, x):
        return self.factor * super().forward(x)


class Plain(nn.Module):
    """No model of diffusers: it knows how to change in its own way."""

    level = 1.0

    def __init__(self):
        super().__init__()
        self.attention = Scaled(8)
        self.first, self.second = (nn.Linear(8, 8, bias=False) for _ in range(2))
        self.text = nn.Linear(8, 8)

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        x = hidden_states + timestep[:, None, None] + self.text(encoder_hidden_states)
        x = x + self.level * self.attention(x)
        return self.first(x) + 2 * self.second(x)

    def raise_level(self):
        self.level += 1

    def write_text(self, value):
        self.text.weight.data.fill_(value)

    def write_first(self, value):
        self.first.weight.data.fill_(value)


@pytest.fixture
def plain():
    model = settled(Plain())
    model.second.load_state_dict(model.first.state_dict())  # equal: a denoiser holds one
    given = {
        "hidden_states": seeded(1, 5, 8),
        "timestep": torch.ones(1),
        "encoder_hidden_states": seeded(1, 5, 8),
    }
    return model, given, dqar_fx.transform(model, COMPUTE)


def check_plain(model, given, denoiser):
    with torch.no_grad():
        assert torch.equal(denoiser(**given), model(**given))


def test_attributes_that_are_set_reach_what_is_captured(plain):
    model, given, denoiser = plain
    check_plain(model, given, denoiser)
    changed = copy.deepcopy(model)
    for change in (
        lambda each: setattr(each, "level", 3.0),
        lambda each: each.raise_level(),
        lambda each: setattr(each, "second", settled(nn.Linear(8, 8))),
        lambda each: delattr(each, "level"),
    ):
        for each in (changed, denoiser):
            change(each)
        check_plain(changed, given, denoiser)
    assert model.level == 1.0


def test_one_of_equal_weights_is_written_alone(plain):
    model, given, denoiser = plain
    check_plain(model, given, denoiser)
    assert denoiser.parameter_bytes.merged == model.second.weight.nbytes
    denoiser.write_first(0.5)
    assert not torch.equal(model.first.weight, model.second.weight)
    check_plain(model, given, denoiser)


def test_what_was_evaluated_of_weights_is_evaluated_anew(plain):
    model, given, denoiser = plain
    for step in range(4):  # of one run, with one prompt
        check_plain(model, {**given, "timestep": torch.tensor([0.9 - 0.2 * step])}, denoiser)
        denoiser.write_text(0.1 * step)  # which torch does not count


def test_equal_weights_are_held_once_again_after_a_look(plain):
    model, given, denoiser = plain
    program = denoiser.prepare(**given)
    for name, _ in denoiser.named_modules():
        assert not name or denoiser.get_submodule(name) is not None
    assert denoiser.prepare(**given) is program
    assert denoiser.parameter_bytes.merged == model.second.weight.nbytes


def test_what_was_handed_out_changes_what_runs(plain):
    model, given, denoiser = plain
    check_plain(model, given, denoiser)
    changed = copy.deepcopy(model)
    for each in (changed, denoiser):
        for module in each.modules():
            if isinstance(module, Scaled):
                module.factor = 3.0
    check_plain(changed, given, denoiser)


@pytest.mark.parametrize("ask", [lambda d: d.train(), lambda d: d.requires_grad_()])
def test_training_is_refused(plain, ask):
    denoiser = plain[-1]
    with pytest.raises(dqar_fx.DqarError, match="inference only"):
        ask(denoiser)
    assert denoiser.eval() is denoiser
    assert denoiser.requires_grad_(requires_grad=False) is denoiser
    assert not denoiser.training


# ---- files and copies --------------------------------------------------------------------


@pytest.mark.parametrize("is_captured", [False, True])
def test_save_pretrained_writes_the_stock_model(tmp_path, is_captured):
    model, given = make_model()
    denoiser = dqar_fx.transform(model, COMPUTE)
    if is_captured:  # equal weights share memory then
        denoiser.prepare(**given)
    denoiser.save_pretrained(tmp_path)
    again = SD3Transformer2DModel.from_pretrained(tmp_path)
    assert type(again) is SD3Transformer2DModel
    assert again.config.pooled_projection_dim == 24
    assert torch.equal(run(again, given), run(model, given))
    assert torch.equal(run(denoiser, given), run(model, given))


def test_a_pipeline_is_saved_with_the_stock_model(tmp_path):
    case = make_dit(batch=1, layers=2)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    pipe = DiTPipeline(case.model, vae, DDIMScheduler())
    pipe.transformer = dqar_fx.transform(case.model, COMPUTE)
    run(pipe.transformer, case.inputs(0))
    pipe.save_pretrained(tmp_path)
    again = DiTPipeline.from_pretrained(tmp_path).transformer
    assert type(again) is DiTTransformer2DModel
    assert torch.equal(run(again, case.inputs(0)), run(case.model, case.inputs(0)))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_and_pickles_are_denoisers(make_copy):
    model, given = make_model()
    denoiser = dqar_fx.transform(model, COMPUTE)
    wanted = run(denoiser, given)
    copied = make_copy(denoiser)
    assert type(copied) is type(denoiser)
    assert torch.equal(run(copied, given), wanted)
    copied.proj_out.weight.data.zero_()
    assert not torch.equal(run(copied, given), wanted)
    assert torch.equal(run(denoiser, given), wanted)


def test_from_pipe_hands_the_denoiser_on():
    model, _ = make_model()
    pipe = put_in_pipeline(dqar_fx.transform(model, COMPUTE))
    other = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    assert other.transformer is pipe.transformer is pipe.components["transformer"]
    assert other.config.transformer == ("diffusers", "SD3Transformer2DModel")


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_is_loaded(assign):
    model, given = make_model()
    denoiser = dqar_fx.transform(model, COMPUTE)
    run(denoiser, given)
    other = copy.deepcopy(model)
    other.load_state_dict({k: 0.7 * v for k, v in model.state_dict().items()})
    denoiser.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(run(denoiser, given), run(other, given))


# ---- what libraries do -------------------------------------------------------------------

OPERATIONS = {
    "set_attn_processor": lambda p: p.transformer.set_attn_processor(JointAttnProcessor2_0()),
    "set_attention_backend": lambda p: p.transformer.set_attention_backend("native"),
    "fuse_qkv_projections": lambda p: p.transformer.fuse_qkv_projections(),
    "enable_gradient_checkpointing": lambda p: p.transformer.enable_gradient_checkpointing(),
    "enable_forward_chunking": lambda p: p.transformer.enable_forward_chunking(2, 1),
    "to": lambda p: p.to(torch.float64).to(torch.float32),
    "half_and_back": lambda p: p.transformer.half().float(),
    "unload_lora_weights": lambda p: p.unload_lora_weights(),
    "fuse_lora": lambda p: p.fuse_lora(components=["transformer"], lora_scale=3.0),
    "disable_lora": lambda p: p.disable_lora(),
    "set_adapters": lambda p: p.set_adapters(["a"], adapter_weights=[0.3]),
    "delete_adapters": lambda p: p.delete_adapters("b"),
}


def fuse_and_unfuse(pipe):
    pipe.fuse_lora(components=["transformer"])
    pipe.unfuse_lora(components=["transformer"])


@pytest.mark.parametrize("name", [*OPERATIONS, "load_lora_weights", "unfuse_lora"])
def test_operations_of_libraries_do_what_they_do_to_the_model(name, lora):
    more = {
        "load_lora_weights": lambda p: p.load_lora_weights(dict(lora), adapter_name="c"),
        "unfuse_lora": fuse_and_unfuse,
    }
    operate = (OPERATIONS | more)[name]
    outputs = []
    for is_transformed in (False, True):
        model, given = make_model()
        pipe = put_in_pipeline(model)
        add_adapters(pipe, "a", "b")
        if is_transformed:
            pipe.transformer = dqar_fx.transform(model, COMPUTE)
        before = run(pipe.transformer, given)
        operate(pipe)
        outputs.append((before, run(pipe.transformer, given)))
    for found, wanted in zip(outputs[1], outputs[0], strict=True):
        assert torch.equal(found, wanted)


def test_an_adapter_that_comes_and_goes_ends_where_it_began(lora):
    model, given = make_model()
    pipe = put_in_pipeline(dqar_fx.transform(model, COMPUTE))
    before = run(pipe.transformer, given)
    pipe.load_lora_weights(dict(lora))
    assert pipe.get_active_adapters() == ["default_0"]
    assert not torch.equal(run(pipe.transformer, given), before)
    pipe.unload_lora_weights()
    assert torch.equal(run(pipe.transformer, given), before)


def test_a_model_that_is_given_back_has_the_adapters(lora):
    model, given = make_model()
    pipe = dqar_fx.enable(put_in_pipeline(model), COMPUTE)
    pipe.load_lora_weights(dict(lora))
    wanted = run(pipe.transformer, given)
    assert dqar_fx.disable(pipe).transformer is model
    assert pipe.get_active_adapters() == ["default_0"]
    assert torch.equal(run(model, given), wanted)


@pytest.mark.parametrize("num_given", [0, 2])
def test_the_scale_of_a_call_is_seen_as_it_was_given(num_given):
    model, given = make_model()
    add_adapters(put_in_pipeline(model), "a")
    denoiser = dqar_fx.transform(model, COMPUTE)
    order = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    outputs = []
    for scale in (1.0, 0.2, 0.7):
        more = {n: given[n] for n in order[num_given:]}
        more["joint_attention_kwargs"] = {"scale": scale}
        args = [given[n] for n in order[:num_given]]
        found = denoiser(*args, **dict(reversed(more.items()))).sample
        with torch.no_grad():
            assert torch.equal(found, model(*args, **more).sample)
        outputs.append(found)
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_a_scale_by_position_is_none_as_in_the_model():
    model, given = make_model()
    add_adapters(put_in_pipeline(model), "a")
    denoiser = dqar_fx.transform(model, COMPUTE)
    order = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    args = [*(given[name] for name in order), None, {"scale": 0.2}]
    with torch.no_grad():
        assert torch.equal(denoiser(*args).sample, model(*args).sample)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("enable_cache", "disable"),
        ("enable_group_offload", "enable_model_cpu_offload"),
        ("enable_layerwise_casting", "to"),
        ("enable_parallelism", "disable"),
    ],
)
def test_what_puts_hooks_around_modules_says_what_to_do_instead(name, instead):
    denoiser = dqar_fx.transform(make_model()[0], COMPUTE)
    with pytest.raises(dqar_fx.DqarError, match=rf"no {name}: .*{instead}\("):
        getattr(denoiser, name)(1)


def cast_layers(model):
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(model, torch.bfloat16, torch.float32)


def offload_layers(model):
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("hook", "library"), [(cast_layers, "diffusers"), (offload_layers, "accelerate")]
)
def test_hooks_around_inner_modules_are_refused_by_name(hook, library):
    model, given = make_model()
    denoiser = dqar_fx.transform(make_model()[0], COMPUTE)
    run(denoiser, given)
    hook(denoiser)
    with pytest.raises(dqar_fx.DqarError, match=f"hook of {library}"):
        run(denoiser, given)
    hook(model)
    with pytest.raises(dqar_fx.DqarError, match=f"hook of {library}"):
        dqar_fx.transform(model, COMPUTE, capture="graph")
