"""Quality against measured time: our fronts, rivals, and simply fewer steps, in one run.

::

    python -m benchmarks.pareto            # reference pipeline: table, rows, the front drawn
    python -m benchmarks.pareto --quick    # does it run at all?

Reads top to bottom from `benchmarks.pareto.job`. What attaches to other people's hooks is in
`benchmarks.pareto.rivals`.
"""
