"""The reference pipeline's main table and pictures, on the device."""

from dataclasses import dataclass

from benchmarks.accelerator.cases import Case, Finding, Stage
from benchmarks.accelerator.scales import Scale
from benchmarks.harness.rows import read_rows
from benchmarks.main_job.job import main

FOLDER = "main"
"""Where its rows and pictures are, below the command's folder."""


@dataclass(frozen=True)
class MainRow:
    """What is read of a row of the main job."""

    name: str
    speed_median: float | None
    ceiling: float | None
    psnr_db: float | str | None
    recompiles: int
    error: str | None


def list_cases(scale: Scale) -> list[Case]:
    """The main job."""
    needs = ("compiles",) if scale.keywords is None else ()
    return [Case("main job", "pipeline", run_main_job, needs)]


def run_main_job(stage: Stage) -> Finding:
    """Run it; what each row says of speed and PSNR."""
    folder = stage.folder / FOLDER
    given = ["--device", str(stage.device), "--out", str(folder), *stage.scale.pipeline]
    code = main(given)
    rows = read_rows(folder / "rows.jsonl", MainRow)
    failed = [row.name for row in rows if row.error]
    fastest = max(rows, key=lambda row: row.speed_median or 0.0)
    word = (
        f"{len(rows)} rows, {len(failed)} failed; fastest {fastest.name}: "
        f"{fastest.speed_median or 0:.2f}x, {fastest.psnr_db} dB"
    )
    values = {row.name: [row.speed_median, row.ceiling, row.psnr_db] for row in rows}
    return Finding(code == 0 and not failed and bool(rows), word, values)
