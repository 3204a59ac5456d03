"""Rows of an ablation that has not been run."""


def make_row(name, **values):
    plain = {
        "name": name,
        "steps": 50,
        "keep": "output",
        "cache": "fp16",
        "reuse_ratio": 0.5,
        "speed_median": 1.2,
        "speed_min": 1.1,
        "speed_max": 1.3,
        "ceiling": 1.25,
        "psnr_db": 33.0,
        "repeats": 5,
    }
    return plain | values


BASELINE = make_row(
    "baseline", keep=None, speed_median=1.0, speed_min=1.0, speed_max=1.0, psnr_db="inf"
)
