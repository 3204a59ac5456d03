"""A forward that reads its conditioning on the host is captured for the values that it has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dqar_fx
from dqar_fx.capture.capture import capture
from tests.helpers.models import Attention

WIDTH, TEXT, TOKENS = 8, 4, 3
LENGTHS = torch.tensor([2, 0, 1, 3])


def by_branch(text, mask):
    return text + 1 if torch.all(mask) else text * 2


def by_nested_branch(text, mask):
    if mask[:, 0].any():
        return text - 1 if mask.sum() > 3 else text + 3
    return -text


def by_lengths(text, mask):
    rows = [row[: int(n)] for row, n in zip(text, mask.sum(1).tolist(), strict=True)]
    return torch.stack([torch.cat([row, text[0, : TEXT - len(row)]]) for row in rows])


def by_selection(text, mask):
    return torch.stack([torch.cat([x[m], x[~m]]) for x, m in zip(text, mask, strict=True)])


def by_assignment(text, mask):
    text = text.clone()
    text[mask] = text[mask] * 3
    text[~mask] = 0.5
    return text


def by_masked_select(text, mask):
    return text + torch.masked_select(text, mask[..., None]).sum()


def by_places(text, mask):
    rows, columns = mask.nonzero(as_tuple=True)
    return text.index_put((rows, columns), text[rows, columns] * 2 + len(rows))


def by_where(text, mask):
    return text + sum(len(each) for each in torch.where(mask[0]))


def by_unique(text, mask):
    return text * len(torch.unique(mask)) + mask.sum(1).unique().sum()


def by_repeats(text, mask):
    repeated = text.repeat_interleave(LENGTHS + mask[0].long(), dim=1)
    return repeated[:, :TEXT] + repeated.shape[1]


def by_numbers(text, mask):
    n = mask.sum().item()
    return text * (n + 1) + torch.arange(mask[0].sum() + 1).sum()


def by_array(text, mask):
    return text + torch.from_numpy(mask.cpu().numpy()).float()[..., None]


def by_slice(text, mask):
    n = mask[0].sum()
    return torch.cat([text[:, n:], text[:, :n]], 1)


def by_one_hot(text, mask):
    return text + torch.nn.functional.one_hot(mask.sum(1)).shape[1]


def by_written_mask(text, mask):
    mask |= torch.eye(*mask.shape, dtype=torch.bool)
    mask[0, -1] = False
    return text + 1 if mask[:, 1:].all() else text[mask].sum() + text


def by_equality(text, mask):
    return text if torch.equal(mask[0], mask[-1]) else text.flip(1)


def by_iteration(text, mask):
    return text * (1 + sum(2**i for i, each in enumerate(mask[0]) if each))


READS = (
    by_branch,
    by_nested_branch,
    by_lengths,
    by_selection,
    by_assignment,
    by_masked_select,
    by_places,
    by_where,
    by_unique,
    by_repeats,
    by_numbers,
    by_array,
    by_slice,
    by_one_hot,
    by_written_mask,
    by_equality,
    by_iteration,
)


class Reader(nn.Module):
    """An attention over tokens and a prompt, of which something is read on the host first."""

    def __init__(self, *reads):
        super().__init__()
        self.reads = reads
        self.attention = Attention(WIDTH)

    def forward(self, hidden_states, timestep, encoder_hidden_states, encoder_attention_mask):
        text, mask = encoder_hidden_states, encoder_attention_mask.clone()
        for read in self.reads:
            text = read(text, mask)
        x = torch.cat([hidden_states * timestep[:, None, None], text], 1)
        return self.attention(x)[:, :TOKENS]


def make(*reads):
    torch.manual_seed(0)
    return Reader(*reads).eval()


def inputs(step, mask, seed=0):
    torch.manual_seed(100 + step)
    latent = torch.randn(len(mask), TOKENS, WIDTH)
    torch.manual_seed(seed)
    text = torch.randn(len(mask), TEXT, WIDTH)
    return latent, torch.full((len(mask),), 1.0 - step / 10), text, mask


def masks(batch=2):
    one = st.lists(st.booleans(), min_size=TEXT, max_size=TEXT)
    return st.lists(one, min_size=batch, max_size=batch).map(torch.tensor)


@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
def test_each_kind_of_read_computes_bit_for_bit_for_every_mask(read):
    model = make(read)
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(2, 1))
    given = [
        torch.tensor([[True, True, False, False], [True, False, False, True]]),
        torch.ones(2, TEXT, dtype=torch.bool),
    ]
    for seed, mask in enumerate([*given, given[0]]):
        call = inputs(0, mask, seed)
        assert torch.equal(denoiser(*call), model(*call))
    assert "specialised by values:\n  encoder_attention_mask read in Reader (" in str(
        denoiser.explain()
    )
    assert len(denoiser.captured_programs()) <= len(given)


@settings(max_examples=5, deadline=None)
@given(
    reads=st.lists(st.sampled_from(READS), min_size=1, max_size=3),
    requests=st.lists(masks(), min_size=1, max_size=2),
    data=st.data(),
)
def test_any_reads_and_any_requests_equal_the_model(reads, requests, data):
    model = make(*reads)
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(2, 1))
    requests += data.draw(st.lists(st.sampled_from(requests), max_size=2))
    for seed, mask in enumerate(requests):
        for step in range(2):
            call = inputs(step, mask, seed)
            assert torch.equal(denoiser(*call), model(*call))


def test_an_array_of_a_mask_that_is_written_later_has_what_was_read():
    mask = torch.tensor([[True, True, False, True], [False, True, True, False]])
    model = make(by_array, by_written_mask)
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(2, 1))
    for step in range(2):
        expected = model(*inputs(step, mask.clone()))
        assert torch.equal(denoiser(*inputs(step, mask.clone())), expected)


def test_values_are_looked_at_once_per_run_and_stream(monkeypatch):
    from dqar_fx.capture.reads import Reads

    looks, hold = [], Reads.hold
    monkeypatch.setattr(Reads, "hold", lambda *given: looks.append(1) or hold(*given))
    model = make(by_lengths)
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(6, 2))
    streams = [torch.tensor([[True, False] * 2]), torch.ones(1, TEXT, dtype=torch.bool)]
    for step in range(6):
        for seed, mask in enumerate(streams):
            denoiser(*inputs(step, mask, seed))
    assert len(denoiser.captured_programs()) == 2
    looked = len(looks)
    assert looked <= 6  # each capture checks itself; each program looked at each mask
    for seed in (1, 2, 3):
        before = len(looks)
        for step in range(6):
            denoiser(*inputs(step, streams[0], seed))
        assert len(looks) - before == 0, "the same tensor, and unwritten"
    denoiser.reset()
    for step in range(6):
        denoiser(*inputs(step, streams[0]))
    assert len(looks) - looked <= 2
    assert len(denoiser.captured_programs()) == 2


def test_a_mask_that_is_written_to_between_runs_is_looked_at_again():
    model = make(by_selection)
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(4, 2))
    mask = torch.tensor([[True, True, False, False]])
    for run in range(3):
        for step in range(4):
            call = inputs(step, mask, seed=run)
            found = denoiser(*call)
            if step == 0:
                assert torch.equal(found, model(*call))
        mask.logical_not_()
    assert len(denoiser.captured_programs()) == 2


def test_a_mask_of_inference_mode_that_is_written_to_is_looked_at_again():
    model = make(by_branch)
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(2, 1))
    with torch.inference_mode():
        mask = torch.ones(1, TEXT, dtype=torch.bool)
        for run in range(3):
            for step in range(2):
                call = inputs(step, mask, seed=run)
                assert torch.equal(denoiser(*call), model(*call))
            mask.logical_not_()
    assert len(denoiser.captured_programs()) == 2


def test_streams_with_other_masks_keep_outputs_apart():
    model = make(by_selection)
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(4, 2))
    given = [torch.tensor([[True, True, False, False]]), torch.tensor([[False, True] * 2])]
    kept = {}

    def keep(step, stream):
        def hook(_module, _args, output):
            if step % 2 == 0:
                kept[stream] = output.clone()
            return kept[stream]

        return hook

    for step in range(4):
        for stream, mask in enumerate(given):
            call = inputs(step, mask, seed=stream)
            found = denoiser(*call)
            handle = model.attention.register_forward_hook(keep(step, stream))
            assert torch.equal(found, model(*call))
            handle.remove()
    assert [program.table.num_steps for program in denoiser.captured_programs()] == [4, 4]


class ReadsLatent(Reader):
    """A forward whose mask depends on what is denoised."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, encoder_attention_mask):
        loud = hidden_states.abs().amax(-1) > 1
        chosen = hidden_states[loud]
        return super().forward(
            hidden_states + chosen.mean(),
            timestep,
            encoder_hidden_states,
            encoder_attention_mask,
        )


class ReadsTimestep(Reader):
    """A forward that does something else at early steps."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, encoder_attention_mask):
        if (timestep * encoder_attention_mask.sum()).max() > 2:
            hidden_states = hidden_states * 2
        return super().forward(
            hidden_states, timestep, encoder_hidden_states, encoder_attention_mask
        )


@pytest.mark.parametrize(
    ("kind", "line", "source"),
    [(ReadsLatent, 2, "hidden_states"), (ReadsTimestep, 1, "timestep")],
)
def test_what_may_be_another_value_at_each_step_is_refused_with_its_line(kind, line, source):
    torch.manual_seed(0)
    denoiser = dqar_fx.transform(kind(by_branch).eval(), dqar_fx.Schedule.interval(4, 2))
    line += kind.forward.__code__.co_firstlineno
    with pytest.raises(dqar_fx.CaptureError) as caught:
        denoiser(*inputs(0, torch.ones(1, TEXT, dtype=torch.bool)))
    assert f"in {kind.__name__} (test_host_reads.py:{line}, forward)" in str(caught.value)
    assert f"reads on the host what depends on {source}, which may be" in str(caught.value)


def test_random_numbers_that_are_read_are_refused():
    class Draws(Reader):
        def forward(self, hidden_states, timestep, encoder_hidden_states, mask):
            if torch.rand(()) * mask.sum() > 1:
                hidden_states = hidden_states * 2
            return hidden_states * timestep[:, None, None] + encoder_hidden_states.sum()

    with pytest.raises(dqar_fx.CaptureError, match=r"depends on .*random numbers"):
        capture(Draws().eval(), inputs(0, torch.ones(1, TEXT, dtype=torch.bool)), {})


def test_values_on_the_meta_device_are_asked_for():
    model = make(by_branch).to("meta")
    call = [each.to("meta") for each in inputs(0, torch.ones(1, TEXT, dtype=torch.bool))]
    with pytest.raises(
        dqar_fx.CaptureError, match="encoder_attention_mask, of which there are no"
    ):
        capture(model, tuple(call), {})


class ReadsParameter(Reader):
    """A forward that asks whether a part of it does anything."""

    def __init__(self, *reads):
        super().__init__(*reads)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_states, timestep, encoder_hidden_states, encoder_attention_mask):
        if self.gate * encoder_attention_mask.sum() > 1:
            encoder_hidden_states = encoder_hidden_states * self.gate
        return super().forward(
            hidden_states, timestep, encoder_hidden_states, encoder_attention_mask
        )


def test_a_parameter_that_is_read_is_looked_at_again_when_it_is_written_to():
    torch.manual_seed(0)
    model = ReadsParameter().eval()
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(2, 1))
    mask = torch.ones(1, TEXT, dtype=torch.bool)
    for gate in (0.0, 3.0, 4.0, 0.0):
        with torch.no_grad():
            model.gate.fill_(gate)
        denoiser.reset()
        for step in range(2):
            call = inputs(step, mask)
            assert torch.equal(denoiser(*call), model(*call))


def test_nothing_is_looked_at_where_nothing_is_read():
    captured = capture(make(), inputs(0, torch.ones(1, TEXT, dtype=torch.bool)), {})
    assert captured.reads is None


def test_what_is_given_is_not_written_to_by_a_capture():
    mask = torch.tensor([[True, False, False, False]])
    model = make(lambda text, m: by_written_mask(text, m))
    before = mask.clone()
    captured = capture(model, inputs(0, mask), {})
    assert torch.equal(mask, before)
    assert captured.reads is not None
