"""The reference pipeline, made smaller."""

import json
import shutil

from benchmarks.reference import PIPELINE


def cut_pipeline(folder, num_layers):
    """Copy the reference pipeline, with its first blocks alone; the folder as text."""
    shutil.copytree(PIPELINE, folder)
    config = folder / "transformer" / "config.json"
    settings = json.loads(config.read_text()) | {"num_layers": num_layers}
    config.write_text(json.dumps(settings))
    return str(folder)
