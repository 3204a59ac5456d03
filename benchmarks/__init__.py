"""What is measured: speed, compile cost and pictures, against the untransformed model.

::

    python -m benchmarks                # the main job: schedules on a pipeline, one table
    python -m benchmarks.ablation       # the DQAR report's, with quality and its claims
    python -m benchmarks.figures        # the report's five figures
    python -m benchmarks.gates          # every gate's table, from one calibration
    python -m benchmarks.optimise       # find schedules, and write their branch tables
    python -m benchmarks.pareto         # quality against time: all of it, rivals, fewer steps
    python -m benchmarks.saving         # how much of the saved work is saved as time
    python -m benchmarks.formats        # steps that store and reuse, for every cache format
    python -m benchmarks.ceiling        # one all-reuse step against what its MACs allow
    python -m benchmarks.compile_cost   # cold compilation, each in a process of its own
"""
