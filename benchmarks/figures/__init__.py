"""The five figures of the DQAR report, each drawn from what was measured or from a graph.

::

    python -m benchmarks.figures                  # all, to results/figures
    python -m benchmarks.figures --only reuse     # one of them
"""
