"""What a graph diff says is saved is what running both rows shows."""

import pytest
import torch
from torch import nn

import dqar_fx
from dqar_fx import Schedule, graph_diff
from dqar_fx.builder.builder import outline
from dqar_fx.costs.operation import UNKNOWN_TO_TORCH
from dqar_fx.inspect import Amounts
from dqar_fx.inspect.flatten import flatten_graph
from dqar_fx.inspect.summary import find_summary_module, group_blocks, ranges
from dqar_fx.passes.support.blocks import find_blocks
from dqar_fx.passes.support.runner import fork
from tests.helpers.inspected_denoisers import MODELS, STEPS, prepared, row, run_row
from tests.helpers.rewrite_checks import captured, tokens
from tests.helpers.slow_cases import slow_but

every_model = pytest.mark.parametrize("name", slow_but("dit", "pixart", of=MODELS))
FORECAST = Schedule.interval(STEPS, every=3, warmup=3).forecast(1)
OPTIONS = {
    "kv": {"keep": "kv"},
    "int8": {"cache": "int8"},
    "all": {"sites": "all"},
    "block": {"sites": "block"},
    "forecast": {"schedule": FORECAST},
}


def check_rows(name, first, second, **options):
    """Savings by running both rows, in operations that PyTorch counts: two per MAC."""
    before, after = row(name, first, **options), row(name, second, **options)
    found = graph_diff(before, after)
    flops = run_row(before), run_row(after)
    assert (2 * found.before.macs, 2 * found.after.macs) == flops
    assert 2 * found.macs == flops[0] - flops[1]
    return found


@every_model
@pytest.mark.parametrize("second", range(1, STEPS))
def test_savings_of_rows_are_what_running_them_counts(name, second):
    check_rows(name, 0, second)


@pytest.mark.parametrize("name", slow_but("dit", of=MODELS))
@pytest.mark.parametrize("kind", OPTIONS)
def test_savings_with_other_sites_and_formats_are_what_running_them_counts(name, kind):
    found = check_rows(name, 0, STEPS - 1, **OPTIONS[kind])
    assert found.macs > 0
    reads = [e for each in found.added.values() for e in each if e.kind == "read"]
    assert {each.site for each in reads} <= set(prepared(name, **OPTIONS[kind]).table.sites)
    if kind == "forecast":
        assert any(each.text.endswith(", 0, 1])") for each in reads)  # the step before


@every_model
def test_savings_of_parameters_are_those_that_one_row_reads(name):
    before, after = row(name, 0), row(name, STEPS - 1)
    parameters = dict(before.named_parameters()) | dict(before.named_buffers())
    read, left = ({str(n.target) for n in get_attrs(gm)} for gm in (before, after))
    assert left < read
    gone = sum(parameters[path].nbytes for path in read - left if path in parameters)
    assert graph_diff(before, after).parameter_bytes == gone > 0


def get_attrs(gm):
    return [n for n in gm.graph.find_nodes(op="get_attr") if not n.meta.get("is_graph")]


def test_savings_of_activations_leave_out_views_and_slots():
    class Two(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1).sin().flatten().cos()

    class One(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1).flatten().cos()

    found = graph_diff(captured(Two(), tokens(4, 8)), captured(One(), tokens(4, 8)))
    assert found.delta == {"aten.sin.default": -1}
    assert found.before.activation_bytes == 3 * 4 * 8 * 4  # flatten has to copy here
    assert found.activation_bytes == 4 * 8 * 4


def test_savings_by_module_are_its_own():
    found = graph_diff(row("dit", 0), row("dit", STEPS - 1))
    path = "transformer_blocks.2.attn1"
    projection = found.by_module[f"{path}.to_q"]
    assert projection.macs == 2 * 36 * 60 * 60
    assert projection.parameter_bytes == (60 * 60 + 60) * 4
    assert projection.activation_bytes == 2 * 36 * 60 * 4
    assert found.by_module[path].macs == 2 * 2 * 3 * 36 * 36 * 20
    assert all(found.by_module.values())


def test_savings_of_shared_regions_belong_to_the_block_that_is_called():
    program = prepared("dit").program
    whole, cut = flatten_graph(program.guarded), flatten_graph(outlined(program))
    assert sum(e.kind == "region" and not e.within for e in cut.entries) == 7
    paths = [[e.path for e in flat.entries if e.kind == "operator"] for flat in (whole, cut)]
    assert paths[0] == paths[1]
    assert whole.parameters == cut.parameters
    places = [[e.place for e in flat.entries if e.kind == "guard"] for flat in (whole, cut)]
    assert places == [list(program.table.sites)] * 2


def outlined(program):
    """The guarded graph, cut into regions that blocks share."""
    gm = fork(program.guarded)
    outline(gm, find_blocks(program.captured.gm.graph.nodes))
    return gm


def test_counter_of_pytorch_misses_attention_of_cpus_and_products_of_integers():
    gm = row("dit", 0)
    macs = graph_diff(gm, gm).before.macs
    attention = 5 * 2 * 2 * 3 * 36 * 36 * 20
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert list(UNKNOWN_TO_TORCH) == [flash, torch.ops.aten._int_mm]
    assert run_row(gm, known={}) == 2 * (macs - attention)


# ---- in text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.attn1"),
        ("transformer_blocks.12", "transformer_blocks.12"),
        ("time_text_embed.timestep_embedder.act", "time_text_embed"),
        ("proj_out_2", "proj_out_2"),
        ("", ""),
    ],
)
def test_owner_is_what_is_right_inside_of_a_block(path, owner):
    assert find_summary_module(path) == owner


def test_blocks_that_are_alike_are_one_row_of_sums():
    rows = {"b.0.a": (1, 2), "b.1.a": (1, 2), "b.2.a": (9, 9), "b.3.a": (1, 2), "c": (5, 0)}
    assert group_blocks(rows) == {"b.0-1,3.a": (3, 6), "b.2.a": (9, 9), "c": (5, 0)}


def test_ranges_of_numbers():
    assert ranges([7, 0, 2, 1]) == "0-2,7"
    assert ranges([4]) == "4"


def test_text_says_of_how_much_is_saved():
    found = graph_diff(row("dit", 0), row("dit", STEPS - 1))
    saved, whole = found.macs / 1e6, found.before.macs / 1e6
    assert f"saved: {saved:.3f} of {whole:.3f} MMACs" in str(found)
    assert "transformer_blocks.0-4.attn1" in str(found)


def test_amounts_add_and_subtract():
    one, two = Amounts(1, 2, 3), Amounts(10, 20, 30)
    assert one + two - one == two
    assert not one - one
    assert dqar_fx.GraphDiff.__dataclass_params__.frozen
