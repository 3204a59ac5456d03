"""Gates that decide by noise, attention entropy or a learned policy, at a common reuse ratio.

::

    python -m benchmarks.gates                              # calibrates, then compares
    python -m benchmarks.gates --calibration my-calibration # keep what takes longest
"""
