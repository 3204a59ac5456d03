"""The ablation runs whole, goes on after an interruption, and its claims follow from rows."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline
from PIL import Image

import dqar_fx
from benchmarks.ablation import generate, job, rules_cost, rules_quality
from benchmarks.ablation.claims import CLAIMS, CONFIRMED, REFUTED, UNTESTABLE, judge_claims
from benchmarks.ablation.configurations import (
    BASELINE,
    FULL,
    KV,
    MENDED,
    MENDED_FP16,
    MENDED_KV,
    QUANT,
    SCHEDULING,
    list_configurations,
    list_fewer_steps,
)
from benchmarks.ablation.facts import gather_facts
from benchmarks.ablation.generate import Studio, from_bytes, to_bytes
from benchmarks.ablation.job import main
from benchmarks.ablation.judging import Quality
from benchmarks.ablation.pairs import find_pairs
from benchmarks.ablation.plan import share_of_keys_values
from benchmarks.ablation.protocol import REPORT_CLASSES, Protocol, choose_classes
from benchmarks.ablation.report import FILES
from benchmarks.ablation.rows import Row
from benchmarks.ablation.store import Piece
from benchmarks.ablation.workshop import SharingWorkshop
from benchmarks.contenders import Contender, Workshop
from benchmarks.geometry import Geometry
from benchmarks.machine import Machine
from benchmarks.pipelines import Task
from benchmarks.reference import PIPELINE
from benchmarks.reference.errors import InputError

NAMES = [BASELINE, SCHEDULING, QUANT, FULL, KV, MENDED]
SMALL = ["--quick", "--steps", "8", "--samples", "2", "--images", "6", "--batch", "2"]
GEOMETRY = Geometry(layers=2, width=64, heads=2, tokens=16, batch=2)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """The reference pipeline, cut down to its first block."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    shutil.copytree(PIPELINE, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 1}))
    return str(folder)


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """The whole job, small: its folder, and what it returned. Facts are gathered once."""
    out = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        known = []

        def gather_once(*arguments):
            known[:] = known or [gather_facts(*arguments)]
            return known[0]

        patch.setattr(job, "gather_facts", gather_once)
        yield out, main([*SMALL, "--model", small_model, "--out", str(out)])


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of what the whole job wrote, to be spoilt."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def generated(monkeypatch):
    """Which configurations and groups are generated, instead of generating them."""
    calls = []

    def note(self, contender, group, bar):
        calls.append((contender.name, group))
        return torch.zeros(self.group_size, 1, 28, 28, dtype=torch.uint8)

    monkeypatch.setattr(Studio, "generate_group", note)
    return calls


def read_rows(folder):
    return {
        row["name"]: row
        for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    }


def run_main(arguments):
    try:
        return main(arguments)
    except SystemExit as exit:
        return exit.code


# ---- the whole job -----------------------------------------------------------------------


def test_main_writes_all_files(finished):
    out, code = finished
    assert code == 0
    assert {path.name for path in out.iterdir()} == {*FILES, "images", "times.safetensors"}
    rows = read_rows(out)
    assert list(rows)[:-1] == NAMES
    assert all(row["error"] is None and row["sample_s"] > 0 for row in rows.values())
    assert len(json.loads((out / "claims.json").read_text())) == len(CLAIMS)
    with Image.open(out / "pictures.png") as grid:
        assert grid.height > 84 * len(rows)


def test_main_page_has_table_pairs_and_claims(finished):
    page = (finished[0] / "ablation.md").read_text()
    assert " FD-FashionCNN n=2 |" in page
    assert "INT8 against FP16: full_dqar" in page
    assert all(claim in page for claim, _ in CLAIMS)
    assert "not testable here" in page


def test_main_rows_have_quality_of_all_groups(finished):
    rows = read_rows(finished[0])
    for row in rows.values():
        assert (row["images"], len(row["frechet"])) == (6, 3)
        assert row["agreement"] is not None
    assert rows[BASELINE]["psnr_db"] == "inf"
    assert rows[BASELINE]["frechet_differences"] == [0.0, 0.0, 0.0]
    assert 10 < rows[FULL]["psnr_db"] < 60
    assert rows[QUANT]["psnr_db"] < rows[SCHEDULING]["psnr_db"]
    assert rows[SCHEDULING]["schedule"] == rows[FULL]["schedule"] == rows[KV]["schedule"]


def test_main_fewer_steps_see_other_noise_and_are_not_compared(finished):
    row = list(read_rows(finished[0]).values())[-1]
    assert row["name"] == f"{row['steps']} steps, cost of full_dqar"
    assert row["steps"] < 8
    assert (row["psnr_db"], row["ssim"], row["lpips"]) == (None, None, None)
    assert row["frechet"]


def test_main_again_generates_and_times_nothing(finished, copied, generated, small_model):
    before = read_rows(copied)
    assert main([*SMALL, "--model", small_model, "--out", str(copied)]) == 0
    assert generated == []
    assert read_rows(copied) == before


def test_main_goes_on_where_it_was(copied, generated, small_model):
    lost = copied / "images" / "full_dqar-1.safetensors"
    lost.unlink()
    arguments = [*SMALL, "--no-time", "--model", small_model, "--out", str(copied)]
    assert main(arguments) == 0
    assert generated == [(FULL, 1)]
    assert lost.exists()
    assert read_rows(copied)[FULL]["sample_s"] > 0  # the times were on disk


def test_main_other_options_are_refused(copied, generated, small_model, capsys):
    arguments = [*SMALL, "--guidance", "2", "--model", small_model, "--out", str(copied)]
    assert main(arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ")
    assert "baseline-0.safetensors is of another run: guidance 1.5 there, 2.0 here" in err
    assert generated == []


def test_main_failing_configuration_is_a_row(
    copied, generated, small_model, capsys, monkeypatch
):
    for path in (copied / "images").glob("quant_cache_only-*"):
        path.unlink()

    def fail(self, contender):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Workshop, "build", fail)
    arguments = [*SMALL, "--no-time", "--model", small_model, "--out", str(copied)]
    assert main(arguments) == 1
    rows = read_rows(copied)
    assert rows[QUANT]["error"] == "RuntimeError: no such kernel"
    assert [name for name, row in rows.items() if row["error"]] == [QUANT]
    assert "quant_cache_only failed: RuntimeError: no such kernel" in capsys.readouterr().out


def test_main_interrupted_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", interrupt)
    assert main(["--quick", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "10"], "--images 10 is no multiple of --seed-groups 3"),
        (["--steps", "1"], "argument --steps: expected an integer of at least 2, found '1'"),
        (["--samples", "0"], "argument --samples: expected an integer of at least 1"),
        (["--scheduler", "dpm"], "argument --scheduler: invalid choice"),
        (["--device", "abacus"], "argument --device: cannot use device 'abacus': "),
        (["--model", "no/such/folder"], "--model no/such/folder is no pipeline: expected"),
        (["--classes", "3", "11"], "--classes 11: the pipeline has 10 classes, 0 to 9"),
        (["--real", "photos"], "the extra metrics are for others"),
        (["--out", "{file}"], "argument --out: cannot write to "),
    ],
)
def test_main_bad_input_is_one_line_and_code_2(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    arguments = [a.replace("{file}", str(file)) for a in arguments]
    assert run_main(["--out", str(tmp_path), "--lowering", "eager", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err


# ---- who takes part ----------------------------------------------------------------------


def test_configurations_are_those_of_the_report():
    found = {c.name: c for c in list_configurations(50, compiled=True, more=True)}
    sites = [f"block.{i}" for i in range(12)]
    tables = {n: c.schedule.resolve(sites) for n, c in found.items() if c.schedule}
    assert list(found) == [*NAMES, MENDED_FP16, MENDED_KV]
    assert found[BASELINE].schedule is None
    assert {n: (c.keep, c.cache) for n, c in found.items() if c.schedule} == {
        SCHEDULING: ("output", "fp16"),
        QUANT: ("output", "int8"),
        FULL: ("output", "int8"),
        KV: ("kv", "fp16"),
        MENDED: ("output", "int8"),
        MENDED_FP16: ("output", "fp16"),
        MENDED_KV: ("kv", "fp16"),
    }
    assert tables[QUANT].reuse_ratio == 0.98
    assert tables[FULL].reuse_ratio == 0.68
    assert tables[FULL] == tables[SCHEDULING] == tables[KV]
    assert tables[MENDED] == tables[MENDED_FP16] == tables[MENDED_KV]
    assert tables[MENDED].max_age == 3


def test_configurations_without_compiler_compile_nothing():
    contenders = list_configurations(9, compiled=False, more=True)
    assert not any(contender.compiled for contender in contenders)


@pytest.fixture(scope="module")
def facts():
    """A tiny model, and the facts of its configurations in 12 steps."""
    model = GEOMETRY.build()
    contenders = list_configurations(12, compiled=True, more=False)
    contenders.append(Contender("compute_all", 12, dqar_fx.Schedule.compute_all(12)))
    return model, gather_facts(model, call_of(), contenders)


def call_of():
    return {
        "hidden_states": GEOMETRY.draw_latent(),
        "timestep": torch.zeros(GEOMETRY.batch, dtype=torch.long),
        "class_labels": GEOMETRY.labels(),
    }


@pytest.mark.parametrize("name", [FULL, KV])
def test_facts_are_those_of_the_denoiser(name, facts):
    model, known = facts
    contender = next(
        c for c in list_configurations(12, compiled=False, more=False) if c.name == name
    )
    denoiser = Workshop(model, "eager").build(contender)
    denoiser.prepare(**call_of())
    assert known[name].cache_bytes == denoiser.cache_bytes
    assert known[name].reuse_ratio == denoiser.table.reuse_ratio
    assert dqar_fx.Schedule.from_actions(known[name].schedule).resolve(
        denoiser.table.sites
    ) == replace(denoiser.table, max_age=None)


def test_facts_of_equal_tables_compare(facts):
    model, known = facts
    output, kv, full = (known[name].macs for name in (SCHEDULING, KV, "compute_all"))
    assert output < kv < full <= known[BASELINE].macs
    share = (full - kv) / (full - output)
    assert share == pytest.approx(share_of_keys_values(model.config), abs=1e-9)
    assert known[KV].cache_bytes == 2 * known[SCHEDULING].cache_bytes
    assert known[FULL].cache_bytes <= 0.55 * known[SCHEDULING].cache_bytes
    assert known[BASELINE].cache_bytes is None


def test_workshop_captures_once_per_kind_of_cache(facts):
    contenders = {c.name: c for c in list_configurations(12, compiled=False, more=False)}
    workshop = SharingWorkshop(facts[0], "eager")
    first = workshop.build(contenders[QUANT])
    first.prepare(**call_of())
    second, other = (workshop.build(contenders[name]) for name in (FULL, SCHEDULING))
    assert second.program.captured is first.program.captured
    assert second.table.reuse_ratio == facts[1][FULL].reuse_ratio
    assert first.table.reuse_ratio == facts[1][QUANT].reuse_ratio
    assert second.program.slot_specs is not first.program.slot_specs
    with pytest.raises(dqar_fx.DqarError, match="nothing has been captured"):
        other.program  # noqa: B018 - fp16 is another kind
    assert workshop.build(contenders[BASELINE]) is facts[0]


def test_fewer_steps_cost_as_much(facts):
    known = facts[1]
    (rival, *others) = list_fewer_steps(known, compiled=True)
    step = known[BASELINE].macs / 12
    assert abs(rival.facts.macs - known[FULL].macs) <= step / 2
    assert rival.contender.steps == rival.facts.steps == round(known[FULL].macs / step)
    assert rival.contender.schedule is None
    assert len({rival.contender.steps, *(o.contender.steps for o in others)}) == 1 + len(
        others
    )


def test_fewer_steps_of_unknown_cost_are_none(facts):
    known = {name: replace(each, macs=None) for name, each in facts[1].items()}
    assert list_fewer_steps(known, compiled=True) == []


# ---- which pictures ----------------------------------------------------------------------


def test_protocol_seeds_of_groups_are_apart():
    protocol = Protocol({0: "cat", 1: "dog"}, (1, 0), 1.5)
    assert protocol.task(0, 0, 3) == Task((42, 43, 44), (1, 0, 1), ("dog", "cat", "dog"), 1.5)
    assert protocol.task(2, 5, 2).seeds == (200_047, 200_048)
    assert protocol.task(0, 1, 1).labels == (0,)


def test_choose_classes_takes_the_reports_where_they_are():
    imagenet = {label: str(label) for label in range(1000)}
    assert choose_classes(imagenet, None) == REPORT_CLASSES
    assert choose_classes({2: "a", 1: "b"}, None) == (1, 2)
    assert choose_classes(imagenet, [5, 3]) == (5, 3)


@pytest.fixture(scope="module")
def pipe(small_model):
    pipe = DiTPipeline.from_pretrained(small_model)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_generate_ddpm_noise_is_each_pictures_own(pipe):
    names = ("",) * 3
    together = Task((42, 43, 44), (0, 1, 2), names, 1.5).generate(pipe, 4)
    torch.manual_seed(1)
    again = Task((42, 43, 44), (0, 1, 2), names, 1.5).generate(pipe, 4)
    alone = Task((43,), (1,), names[:1], 1.5).generate(pipe, 4)
    assert torch.equal(together, again)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert "step" not in vars(pipe.scheduler)


def test_generate_group_last_batch_is_as_large_and_cut(pipe, monkeypatch):
    protocol = Protocol({0: "a", 1: "b"}, (0, 1), 1.5)
    sizes = []
    generate_task = Task.generate

    def note(self, pipe, steps):
        sizes.append(len(self.seeds))
        return generate_task(self, pipe, steps)

    monkeypatch.setattr(Task, "generate", note)
    workshop = Workshop(pipe.transformer, "eager")
    bar = type("Bar", (), {"update": lambda *_: None})()
    images = [
        Studio(pipe, workshop, protocol, 3, batch).generate_group(Contender("a", 2), 0, bar)
        for batch in (2, 3)
    ]
    assert sizes == [2, 2, 3]
    assert [tuple(each.shape) for each in images] == [(3, 1, 28, 28)] * 2
    assert (images[0].int() - images[1].int()).abs().max() <= 1


def test_to_bytes_rounds_and_refuses_what_is_no_picture():
    images = torch.tensor([0.0, 0.3, 1.0, 1.2]).reshape(1, 1, 2, 2)
    assert to_bytes(images).flatten().tolist() == [0, 76, 255, 255]
    assert from_bytes(to_bytes(images)).max() == 1.0
    with pytest.raises(ValueError, match="NaN"):
        to_bytes(torch.full((1, 1, 2, 2), math.nan))


# ---- what is on disk ---------------------------------------------------------------------


def test_piece_is_read_as_written(tmp_path):
    piece = Piece(tmp_path / "deep" / "a.safetensors", {"steps": 50, "classes": (1, 2)})
    assert not piece.is_finished()
    piece.write({"images": torch.arange(3)}, {"took_s": 1.5})
    assert piece.is_finished()
    assert piece.read()["images"].tolist() == [0, 1, 2]
    assert piece.read_notes() == {"took_s": 1.5}
    assert [path.name for path in piece.path.parent.iterdir()] == ["a.safetensors"]


def test_piece_of_another_run_is_refused(tmp_path):
    Piece(tmp_path / "a.safetensors", {"steps": 50, "old": 1}).write({})
    other = Piece(tmp_path / "a.safetensors", {"steps": 20, "model": "m" * 99})
    with pytest.raises(InputError) as error:
        other.is_finished()
    assert "model None there, mmm" in str(error.value)
    assert "old 1 there, None here, steps 50 there, 20 here" in str(error.value)


def test_piece_damaged_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read"):
        Piece(tmp_path / "a.safetensors", {}).is_finished()


def test_piece_interrupted_while_writing_is_not_there(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    piece = Piece(tmp_path / "a.safetensors", {})
    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        piece.write({"images": torch.zeros(2)})
    assert not piece.is_finished()


def test_generate_pictures_generates_what_is_missing(tmp_path, generated):
    contenders = [Contender("a", 2), Contender("b", 2)]
    entries = [job.Entry(each, generate) for each in contenders]  # facts are not looked at
    pieces = {
        name: [Piece(tmp_path / f"{name}-{group}.safetensors", {}) for group in range(2)]
        for name in "ab"
    }
    pieces["a"][1].write({"images": torch.zeros(1)})
    pipe = type("Pipe", (), {})()
    studio = Studio(pipe, Workshop(torch.nn.Identity(), "eager"), None, 1, 1)
    assert generate.generate_pictures(studio, entries, pieces) == {}
    assert generated == [("a", 0), ("b", 0), ("b", 1)]
    assert pipe.transformer is studio.workshop.original


# ---- claims ------------------------------------------------------------------------------

MACHINE = Machine("cpu", "AMD EPYC", 2, 2, "2.13", "0.42", "0.1", None, None)
RUN = {"model": "reference/pipeline", "frechet_name": "FD-FashionCNN", "kv_share": 0.42}
ON_A100 = {
    "machine": replace(MACHINE, device="cuda", processor="NVIDIA A100-SXM4-40GB"),
    "run": RUN | {"model": "facebook/DiT-XL-2-256"},
}
ON_T4 = ON_A100 | {"machine": replace(MACHINE, device="cuda", processor="Tesla T4")}
ON_MPS = ON_A100 | {"machine": replace(MACHINE, device="mps", processor="Apple M3")}


def judged(psnr_db, *frechet, images=2100):
    return {"quality": Quality(images, psnr_db=psnr_db, ssim=0.9, frechet=frechet)}


def at_speed(speed):
    return {"speed_median": speed, "speed_min": speed, "speed_max": speed}


def make_rows(changes):
    """Rows of a made-up run of the claims' configurations; changes are by name."""
    known = {
        BASELINE: {"macs": 100, **judged(math.inf, 10.0, 10.2, 9.9)},
        SCHEDULING: {"macs": 50, "cache_bytes": 100, **judged(20.0, 10.1, 10.1, 10.0)},
        QUANT: {"cache_bytes": 51, **judged(9.0, 90.0, 91.0, 92.0)},
        FULL: {"cache_bytes": 51, "reuse_ratio": 0.68, **judged(20.0, 10.2, 10.0, 10.0)},
        KV: {"macs": 79, "cache_bytes": 200, **judged(15.0, 13.0, 13.1, 12.9)},
    }
    shared = {"parameter_bytes": 1000, "run": RUN, "machine": MACHINE, **at_speed(1.3)}
    shared |= changes.get("all", {})
    return [
        Row(name=name, steps=50, **shared | values | changes.get(name, {}))
        for name, values in known.items()
    ]


def verdict_of(rule, changes):
    claims = zip(judge_claims(make_rows(changes)), CLAIMS, strict=True)
    return next(claim.verdict for claim, (_, decides) in claims if decides is rule)


SAME = judged(20.0, 10.1, 10.1, 10.0)
FEW = judged(20.0, 10.1, 10.1, 10.0, images=1999)
ONE_GROUP = judged(20.0, 10.1)
FAR = judged(20.0, 12.0, 12.1, 12.2)
UNSURE = judged(20.0, 9.0, 12.1, 12.2)  # one seed group disagrees
SLIGHT = judged(20.0, 10.11, 10.11, 10.01)  # all agree, but it is less than noise

CASES = [
    (rules_cost.reach_target_speed, {}, CONFIRMED),
    (rules_cost.reach_target_speed, {"all": at_speed(1.2)}, REFUTED),
    (rules_cost.reach_target_speed, {SCHEDULING: FAR, FULL: FAR}, REFUTED),
    (rules_cost.reach_target_speed, {"all": {"speed_median": None}}, UNTESTABLE),
    (rules_cost.reach_target_speed, {FULL: FEW}, UNTESTABLE),
    (rules_cost.reach_target_memory, {}, REFUTED),
    (rules_cost.reach_target_memory, {FULL: {"cache_bytes": -200}}, CONFIRMED),
    (rules_cost.reach_target_memory, {FULL: {"cache_bytes": -200, **FAR}}, REFUTED),
    (rules_cost.reach_target_memory, {FULL: {"cache_bytes": None}}, UNTESTABLE),
    (rules_cost.A100, {}, UNTESTABLE),
    (rules_cost.A100, {"all": ON_A100 | at_speed(1.5)}, CONFIRMED),
    (rules_cost.A100, {"all": ON_A100 | at_speed(1.4)}, REFUTED),
    (rules_cost.A100, {"all": ON_A100 | {"run": RUN}}, UNTESTABLE),
    (rules_cost.T4, {}, UNTESTABLE),
    (rules_cost.T4, {"all": ON_T4 | at_speed(1.3)}, CONFIRMED),
    (rules_cost.T4, {"all": ON_T4 | at_speed(1.1)}, REFUTED),
    (rules_cost.T4, {"all": ON_A100}, UNTESTABLE),
    (rules_cost.MPS, {}, UNTESTABLE),
    (rules_cost.MPS, {"all": ON_MPS | at_speed(1.02)}, CONFIRMED),
    (rules_cost.MPS, {"all": ON_MPS | at_speed(1.2)}, REFUTED),
    (rules_cost.reach_full_reuse, {}, REFUTED),
    (rules_cost.reach_full_reuse, {FULL: {"reuse_ratio": 0.98}}, CONFIRMED),
    (rules_cost.reach_full_reuse, {FULL: {"error": "failed"}}, UNTESTABLE),
    (rules_cost.halve_bytes, {}, CONFIRMED),
    (rules_cost.halve_bytes, {FULL: {"cache_bytes": 56}}, REFUTED),
    (rules_cost.halve_bytes, {SCHEDULING: {"cache_bytes": None}}, UNTESTABLE),
    (rules_cost.double_memory, {}, CONFIRMED),
    (rules_cost.double_memory, {KV: {"cache_bytes": 100}}, REFUTED),
    (rules_cost.double_memory, {KV: {"error": "failed"}}, UNTESTABLE),
    (rules_cost.save_projections_only, {}, CONFIRMED),
    (rules_cost.save_projections_only, {KV: {"macs": 50}}, REFUTED),
    (rules_cost.save_projections_only, {KV: {"macs": None}}, UNTESTABLE),
    (rules_quality.degrade_by_keys_values, {}, CONFIRMED),
    (rules_quality.degrade_by_keys_values, {KV: SAME}, REFUTED),
    (rules_quality.degrade_by_keys_values, {KV: UNSURE}, REFUTED),
    (rules_quality.degrade_by_keys_values, {KV: SLIGHT}, REFUTED),
    (rules_quality.degrade_by_keys_values, {KV: FEW}, UNTESTABLE),
    (rules_quality.preserve_by_outputs, {}, CONFIRMED),
    (rules_quality.preserve_by_outputs, {SCHEDULING: FAR}, REFUTED),
    (rules_quality.preserve_by_outputs, {SCHEDULING: judged(20.0)}, UNTESTABLE),
    (rules_quality.reuse_exactly, {}, REFUTED),
    (rules_quality.reuse_exactly, {SCHEDULING: judged(60.0)}, CONFIRMED),
    (rules_quality.reuse_exactly, {SCHEDULING: judged(None)}, UNTESTABLE),
    (rules_quality.lose_by_int8, {}, REFUTED),
    (rules_quality.lose_by_int8, {FULL: FAR}, CONFIRMED),
    (
        rules_quality.lose_by_int8,
        dict.fromkeys(NAMES, ONE_GROUP),
        UNTESTABLE,
    ),
    (rules_quality.degrade_by_full_reuse, {}, CONFIRMED),
    (rules_quality.degrade_by_full_reuse, {QUANT: SAME}, REFUTED),
    (rules_quality.degrade_by_full_reuse, {BASELINE: {"error": "failed"}}, UNTESTABLE),
]


@pytest.mark.parametrize(("rule", "changes", "verdict"), CASES)
def test_claims_follow_from_rows(rule, changes, verdict):
    assert verdict_of(rule, changes) == verdict


def test_claims_each_have_cases_of_every_verdict():
    seen = {(rule, verdict) for rule, _, verdict in CASES}
    for _, rule in CLAIMS:
        assert {v for r, v in seen if r is rule} == {CONFIRMED, REFUTED, UNTESTABLE}


def test_claims_without_rows_are_untestable():
    assert {claim.verdict for claim in judge_claims([])} == {UNTESTABLE}


def test_claims_untestable_speed_still_tells_what_was_measured():
    claims = judge_claims(make_rows({}))
    (a100,) = [
        c for c, (_, rule) in zip(claims, CLAIMS, strict=True) if rule is rules_cost.A100
    ]
    assert a100.measured.startswith("full_dqar: 1.30x (1.30-1.30) on cpu (AMD EPYC)")
    assert a100.why == "The claim is about facebook/DiT-XL-2-256 on A100, the run is not."


def test_claims_tell_of_the_mended_table_where_it_is_in_the_run():
    rows = [
        *make_rows({}),
        Row(MENDED, 50, run=RUN, **judged(36.0, 10.3, 10.4, 10.2)),
        Row(MENDED_FP16, 50, run=RUN, **judged(37.0, 10.1, 10.3, 10.1)),
    ]
    (before, after) = (judge_claims(rows[:5]), judge_claims(rows))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    (int8,) = changed
    assert int8.claim.startswith("INT8 costs a little quality")
    assert (
        "with max_age=3, which the report does not have, FD-FashionCNN +0.133" in int8.measured
    )
    assert [c.verdict for c in before] == [c.verdict for c in after]


def test_find_pairs_are_of_equal_table_or_equal_cost():
    rows = [*make_rows({}), Row("40 steps, cost of full_dqar", 40)]
    found = [(row.name, other.name) for _, row, other in find_pairs(rows)]
    assert found == [(FULL, SCHEDULING), (KV, SCHEDULING), (FULL, rows[-1].name)]
