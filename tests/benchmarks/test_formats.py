"""The comparison of cache formats: what of each step counts, and ratios of paired times."""

from benchmarks.formats import BASE, WARMUP_PAIRS, Measured, list_columns
from benchmarks.harness.tables import format_table
from benchmarks.harness.timing import Compiled


def measured(cache, cache_bytes, *seconds):
    found = Measured(cache, "output", cache_bytes)
    for step, second in enumerate([9.0] * 2 * WARMUP_PAIRS + list(seconds)):
        found.note(step, second, Compiled(graphs=1 if step in (0, 5) else 0, breaks=0))
    return found


def test_measured_counts_steps_by_kind_after_the_warmup():
    found = measured("int8", 500_000, 1.0, 0.5, 3.0, 1.5)
    assert (found.store_s, found.reuse_s) == ([1.0, 3.0], [0.5, 1.5])
    assert (found.graphs, found.recompiles, found.breaks) == (2, 1, 0)


def test_table_has_medians_and_ratios_to_the_base():
    base = measured(BASE, 1_000_000, 2.0, 1.0, 2.0, 1.0)
    rows = [base, measured("int8", 500_000, 1.0, 1.0, 3.0, 2.0)]
    line = format_table(list_columns(base), rows).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        *("int8", "0.50", "0.500", "2", "2000.00", "1.000 (0.250-1.750)"),
        *("1500.00", "1.500 (0.750-2.250)", "0.0e+00"),
    ]
