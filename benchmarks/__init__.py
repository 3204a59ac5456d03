"""What is measured: speed, compile cost and pictures, against the untransformed model.

::

    python -m benchmarks                # the main job: schedules on a pipeline, one table
    python -m benchmarks.ceiling        # one all-reuse step against what its MACs allow
    python -m benchmarks.compile_cost   # cold compilation, each in a process of its own
"""
