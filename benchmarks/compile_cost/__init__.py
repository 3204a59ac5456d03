"""Cold and warm compilation: untransformed as one graph, and linear schedules by regions."""
