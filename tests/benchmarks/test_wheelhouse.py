"""The list of wheels: what requirements lead to, without what is there."""

from __future__ import annotations

import pytest

from benchmarks.accelerator import wheelhouse
from benchmarks.accelerator.wheelhouse import Options, list_requirements, list_wheels
from tests.benchmarks.command_errors import refuse

REPORT = {
    "install": [
        {"metadata": {"name": name, "version": version, "requires_dist": needs}}
        for name, version, needs in (
            ("torch", "2.13.0", ["nvidia-cuda-runtime==13.0.96", "sympy>=1.13.3"]),
            ("nvidia-cuda-runtime", "13.0.96", []),
            ("sympy", "1.14.0", ["mpmath<1.4"]),
            ("mpmath", "1.3.0", []),
            ("Typing_Extensions", "4.15.0", []),
            ("tyro", "1.0.17", ["typing-extensions>=4; python_version<'3.13'"]),
        )
    ]
}


@pytest.fixture
def resolved(monkeypatch):
    """What pip was asked for."""
    asked = []

    def resolve(requirements, options):
        asked.append(requirements)
        return REPORT

    monkeypatch.setattr(wheelhouse, "resolve", resolve)
    return asked


def test_wheels_follow_requirements():
    found = list_wheels(REPORT, ["torch>=2.13", "tyro"], ())
    assert [str(wheel) for wheel in found] == [
        *("mpmath==1.3.0", "nvidia-cuda-runtime==13.0.96", "sympy==1.14.0", "torch==2.13.0"),
        *("tyro==1.0.17", "Typing_Extensions==4.15.0")[::-1],
    ]


def test_what_is_there_is_left_out_with_what_it_alone_asks_for():
    found = list_wheels(REPORT, ["torch>=2.13", "tyro"], {"torch", "typing-extensions"})
    assert [wheel.name for wheel in found] == ["tyro"]


def test_requirements_are_those_of_the_project_and_its_extras():
    plain, peers = list_requirements(()), list_requirements(("peers",))
    assert any(each.startswith("torch") for each in plain)
    assert set(plain) < set(peers)
    assert any(each.startswith("cache-dit") for each in peers)
    assert any(each.startswith("tyro") for each in peers)  # an extra of an extra


def test_command_writes_what_pip_reads(tmp_path, resolved, capsys):
    have = tmp_path / "have.txt"
    have.write_text("# there\nsympy==1.14.0\n")
    given = ["--python", "3.12", "--have", str(have), "--out", str(tmp_path)]
    assert wheelhouse.main(given) == 0
    lines = (tmp_path / "wheels.txt").read_text().splitlines()
    assert lines[0] == "# Python 3.12, x86_64, CUDA 13.0.96"
    assert "torch==2.13.0" in lines
    assert not any(line.startswith(("sympy", "mpmath")) for line in lines)
    assert lines[0][2:] in capsys.readouterr().out


def test_command_asks_for_nothing_that_is_there(tmp_path, resolved):
    assert wheelhouse.main(["--without", "torch", "--out", str(tmp_path)]) == 0
    assert not any(each.startswith("torch>") for each in resolved[0])
    head = (tmp_path / "wheels.txt").read_text().splitlines()[0]
    assert head.endswith("CUDA as it is there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extras", "nothing"], "--extras nothing: there are benchmarks"),
        (["--have", "no/file"], "--have no/file: No such file"),
    ],
)
def test_command_wrong_arguments_are_refused(arguments, message, tmp_path, capsys, resolved):
    code, error = refuse(wheelhouse.main, [*arguments, "--out", str(tmp_path)], capsys)
    assert code == 2
    assert message in error


def test_command_says_what_pip_said(tmp_path, capsys, monkeypatch):
    class Ended:
        returncode, stderr = 1, "noise\nERROR: No matching distribution found for torch\n"

    monkeypatch.setattr(wheelhouse.subprocess, "run", lambda *_, **__: Ended)
    code, error = refuse(wheelhouse.main, ["--out", str(tmp_path)], capsys)
    assert code == 2
    assert "No matching distribution found for torch" in error
    assert Options().python.count(".") == 1
