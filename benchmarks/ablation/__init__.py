"""The ablation of the DQAR report: its four configurations, rivals, and its claims.

::

    python -m benchmarks.ablation            # reference pipeline: table, claims, pictures
    python -m benchmarks.ablation --quick    # does it run at all?

Reads top to bottom from `benchmarks.ablation.job`.
"""
