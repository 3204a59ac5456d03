"""Cold and warm compilation: untransformed as one graph, and linear schedules by regions.

::

    python -m benchmarks.compile_cost              # layers 12 28 56, steps 20 50 100
    python -m benchmarks.compile_cost --quick      # does it run at all?

Each in a process of its own with an empty Inductor cache (cold), then again in another one
over the cache that the first has left (warm). Reads top to bottom from
`benchmarks.compile_cost.job`; what is counted is said in `benchmarks.compile_cost.process`.
"""
