"""One environment variable writes every graph; loggers say what was done, if asked to."""

import ast
import logging

import pytest

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.builder.dumps import VARIABLE, Dump, open_dump
from dqar_fx.passes import normalise
from dqar_fx.passes.support.runner import fork, ignore, run_pass
from tests.helpers.models import make_dit
from tests.helpers.rewrite_checks import Stack, captured, tokens

FOLDER = "DiTTransformer2DModel_0"


@pytest.fixture
def case():
    return make_dit(layers=2)


def run(case, **options):
    """A denoiser whose two steps have been run."""
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("SR"), **options)
    for step in range(2):
        denoiser(**case.inputs(step))
    return denoiser


@pytest.fixture
def dumped(case, tmp_path, monkeypatch):
    """A folder that graphs were written to, and their denoiser."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new" / "dump"))
    return tmp_path / "new" / "dump", run(case)


def names(folder):
    return sorted(path.name for path in folder.glob("*.py"))


# ---- dumps -------------------------------------------------------------------------------


def test_dump_has_graphs_before_and_after_each_pass(dumped):
    folder, denoiser = dumped
    found = names(folder / FOLDER)
    assert found[0] == "00_captured.py"
    steps = [r for r in denoiser.explain().reports if r.graph != "region"]
    expected = [
        f"{number:02d}_{r.name}{'' if r.graph == 'step' else f'.{r.graph}'}.{when}.py"
        for number, r in enumerate(steps, 1)
        for when in ("after", "before")
    ]
    assert found[1:] == expected
    assert "01_normalise.before.py" in found


def test_dump_is_readable_python(dumped):
    folder, denoiser = dumped
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text())
    text = (folder / FOLDER / "00_captured.py").read_text()
    shown = denoiser.program.captured.gm.print_readable(print_output=False)
    assert text == f"# captured: DiTTransformer2DModel\n{shown}\n"


def test_dump_shows_the_graph_as_the_pass_found_and_left_it(dumped):
    folder, _ = dumped
    before, after = (
        (folder / FOLDER / f"01_normalise.{when}.py").read_text()
        for when in ("before", "after")
    )
    assert "aten.dropout" in before
    assert "aten.dropout" not in after
    assert "compute_or_reuse(" in (folder / FOLDER / "04_insert_guards.after.py").read_text()


def test_dump_has_each_lowered_region_with_its_actions(dumped):
    folder, denoiser = dumped
    regions = folder / FOLDER / "regions"
    lowered = [name for name in names(regions) if "lowered" in name]
    assert len(lowered) == len(denoiser.program.variants)
    (reusing, *_) = (name for name in lowered if name.endswith("lowered_R.py"))
    text = (regions / reusing).read_text()
    assert text.startswith("# lowered: R\n")
    assert "scaled_dot_product_attention" not in text
    storing = [name for name in lowered if name.endswith("lowered_S.py")]
    assert all("aten.copy_" in (regions / name).read_text() for name in storing)
    specialised = [r for r in denoiser.explain().reports if r.name == "specialise"]
    assert sum("specialise" in name for name in names(regions)) == 2 * len(specialised)


@pytest.mark.slow
def test_dump_of_another_signature_has_a_folder_of_its_own(dumped):
    folder, denoiser = dumped
    denoiser.prepare(**make_dit(batch=3, layers=2).inputs(0))
    assert sorted(path.name for path in folder.iterdir()) == [FOLDER, f"{FOLDER[:-1]}1"]
    assert names(folder / f"{FOLDER[:-1]}1") == names(folder / FOLDER)


def test_dump_changes_no_graph(dumped, case, monkeypatch):
    _, denoiser = dumped
    monkeypatch.delenv(VARIABLE)
    plain = run(case)
    for step in range(2):
        assert not dqar_fx.graph_diff(plain.row_graph(step), denoiser.row_graph(step))


@pytest.mark.parametrize("value", [None, ""])
def test_dump_unasked_writes_nothing(value, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    assert open_dump("Model") == (ignore, ignore)
    assert list(tmp_path.iterdir()) == []


def test_dump_to_what_is_no_folder_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv(VARIABLE, str(file))
    with pytest.raises(dqar_fx.DqarError, match=r"DQAR_FX_DUMP=.*file.*Expected a folder"):
        open_dump("Model")


def test_dump_numbers_go_on(tmp_path):
    gm, dump = captured(Stack(1), tokens()), Dump(tmp_path, digits=3)
    dump("captured", "Stack", gm)
    for _ in range(2):
        run_pass(fork(gm), normalise, "stage_1", dump)
    assert names(tmp_path) == [
        "000_captured.py",
        "001_normalise.stage_1.after.py",
        "001_normalise.stage_1.before.py",
        "002_normalise.stage_1.after.py",
        "002_normalise.stage_1.before.py",
    ]


# ---- logging -----------------------------------------------------------------------------


def logged(caplog, name):
    return [r.getMessage() for r in caplog.records if r.name == name]


def test_logging_says_what_was_captured_lowered_and_passed(case, caplog):
    with caplog.at_level(logging.DEBUG, logger="dqar_fx"):
        denoiser = run(case)
    (capture,) = logged(caplog, "dqar_fx.capture.capture")
    assert capture.startswith("captured DiTTransformer2DModel: ")
    regions = logged(caplog, "dqar_fx.program.lowering")
    assert len(regions) == len(denoiser.program.variants)
    assert any("(eager): actions R, " in line for line in regions)
    passes = logged(caplog, "dqar_fx.passes.support.runner")
    assert passes == [str(report) for report in denoiser.explain().reports]


def test_logging_levels_are_info_and_debug(case, caplog):
    with caplog.at_level(logging.INFO, logger="dqar_fx"):
        run(case)
    assert logged(caplog, "dqar_fx.passes.support.runner") == []
    assert logged(caplog, "dqar_fx.capture.capture")


def test_logging_is_silent_in_a_step_that_has_run_before(case, caplog):
    denoiser = run(case)
    with caplog.at_level(logging.DEBUG, logger="dqar_fx"):
        for step in range(2):
            denoiser(**case.inputs(step, seed=1))
    ours = [r.name for r in caplog.records if r.name.startswith("dqar_fx")]
    assert ours == ["dqar_fx.runs"]  # the run before has ended


def test_logging_is_silent_by_default(case, capfd):
    run(case)
    assert capfd.readouterr() == ("", "")
    handlers = logging.getLogger("dqar_fx").handlers
    assert any(isinstance(each, logging.NullHandler) for each in handlers)
