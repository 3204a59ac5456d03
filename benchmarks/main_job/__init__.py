"""The main job: schedules on a pipeline, in one table with their pictures."""
