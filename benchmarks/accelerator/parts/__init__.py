"""The parts, in the order of what they are worth: the report's own question comes first."""

from benchmarks.accelerator.cases import Part
from benchmarks.accelerator.parts import costs, graphs, identity, peers, pipeline, speed

PARTS = (
    Part("question", 8, speed.list_question),  # what the report measured: nothing else first
    Part("identity", 3, identity.list_cases),  # without it no speed means anything
    Part("graphs", 4, graphs.list_cases),  # what the design promises of a step
    Part("speed", 8, speed.list_cases),  # other models, batches, schedules and formats
    Part("pipeline", 5, pipeline.list_cases),  # pictures of a trained model
    Part("costs", 4, costs.list_cases),  # compilation, and predictions
    Part("peers", 4, peers.list_cases),  # each in processes of its own: slow to start
)
