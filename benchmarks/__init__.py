"""What is measured: speed, compile cost and pictures, against the untransformed model.

::

    python -m benchmarks                # the main job: schedules on a pipeline, one table
    python -m benchmarks.ablation       # the DQAR report's, with quality and its claims
    python -m benchmarks.figures        # the report's five figures
    python -m benchmarks.gates          # every gate's table, from one calibration
    python -m benchmarks.optimise       # find schedules, and write their branch tables
    python -m benchmarks.pareto         # quality against time: all of it, peers, fewer steps
    python -m benchmarks.tiers          # schedule tiers: models, solvers, numbers of steps
    python -m benchmarks.saving         # how much of the saved work is saved as time
    python -m benchmarks.formats        # steps that store and reuse, for every cache format
    python -m benchmarks.ceiling        # one all-reuse step against what its MACs allow
    python -m benchmarks.peers          # every peer in a process of its own, all columns
    python -m benchmarks.compile_cost   # cold and warm compilation, in processes of their own
    python -m benchmarks.overhead       # what a step takes outside of its regions
    python -m benchmarks.scale          # growth of a transformation with layers and steps
    python -m benchmarks.pipelines      # does every stock pipeline do what it must?
    python -m benchmarks.cost_model     # predicted against measured time of trajectories
    python -m benchmarks.accelerator    # every claim about accelerators, within a budget
"""

from benchmarks.source_tree import find_mapped_package

find_mapped_package()
