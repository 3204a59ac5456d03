"""From a name, a folder or a config file to a model, by default without its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import CaptureError

from .cards import find_card_maybe, read_cards

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SUBFOLDER = "transformer"
"""Where a pipeline has its denoiser."""
CONFIG = "config.json"


def build_model(source: str, dtype: torch.dtype) -> nn.Module:
    """A model on the meta device, from a config file, a folder, a card or a hub's name.

    Raises:
        CaptureError: There is no config, or no model can be built from it.
    """
    config = read_config(source)
    model_class = find_class(config, source)
    try:
        with torch.device("meta"):
            model: nn.Module = model_class.from_config(config)
    except Exception as error:
        raise CaptureError(
            f"{source}: no {model_class.__name__} can be built from this config: "
            f"{type(error).__name__}: {error}"
        ) from error
    cast_parameters(model, dtype)
    return model.eval()


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters as loading does: those that the model wants in float32 stay so."""
    kept = frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def load_model(source: str, dtype: torch.dtype) -> nn.Module:
    """A model with its weights, on the CPU, from a folder or by a hub's name.

    Raises:
        CaptureError: There are no weights, or they do not fit.
    """
    if find_card_maybe(source) is not None:
        raise CaptureError(
            f"{source} is a card, which has no weights: give a folder or a name on the hub, "
            "or leave --weights out"
        )
    model_class = find_class(read_config(source), source)
    folder = Path(source)
    is_pipeline = (folder / SUBFOLDER / CONFIG).is_file()
    has_own = folder.is_dir() and not is_pipeline
    try:
        model: nn.Module = model_class.from_pretrained(
            source, subfolder=None if has_own else SUBFOLDER, torch_dtype=dtype
        )
    except Exception as error:
        raise CaptureError(
            f"{source}: weights cannot be loaded: {type(error).__name__}: {error}. Without "
            "--weights the model is built from its config alone"
        ) from error
    return model.eval()


def read_config(source: str) -> dict[str, Any]:
    """The config of a denoiser.

    Raises:
        CaptureError: There is none.
    """
    path, card = Path(source), find_card_maybe(source)
    if card is not None:
        return dict(card.config)
    if path.is_file():
        return read_json(path)
    if path.is_dir():
        places = (path / SUBFOLDER / CONFIG, path / CONFIG)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise CaptureError(
                f"{source} is a folder without {SUBFOLDER}/{CONFIG} or {CONFIG}: expected "
                "that of a diffusers pipeline with a transformer, or of a transformer"
            )
        return read_json(found)
    if HUB_NAME.fullmatch(source):
        return fetch_config(source)
    raise CaptureError(
        f"{source} is no model: expected a folder, a config file, a name on the hub such as "
        f"facebook/DiT-XL-2-256, or a card: {', '.join(read_cards())}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CaptureError: It is none.
    """
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CaptureError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise CaptureError(f"{path} is no config of a model: expected an object")
    return config


def fetch_config(name: str) -> dict[str, Any]:
    """The config of a denoiser on the hub: that of a pipeline's, or of a model.

    Raises:
        CaptureError: It cannot be had.
    """
    from diffusers import AutoModel  # only here: what is local needs no hub

    reasons = []
    for subfolder in (SUBFOLDER, None):
        try:
            config = AutoModel.load_config(name, subfolder=subfolder)
        except (OSError, ValueError) as error:
            reasons.append(str(error).strip().partition("\n")[0])
        else:
            return dict(config)
    raise CaptureError(
        f"{name}: no folder of this name, and its config cannot be fetched from the hub: "
        f"{reasons[0]}"
    )


def find_class(config: Mapping[str, Any], source: str) -> Any:
    """The class of diffusers that a config is for.

    Raises:
        CaptureError: diffusers has no such model.
    """
    import diffusers

    name = config.get("_class_name")
    found = getattr(diffusers, str(name), None)
    if found is None or not hasattr(found, "from_config"):
        raise CaptureError(
            f"{source} is a config of {name!r}: expected _class_name to be a model of "
            "diffusers, such as DiTTransformer2DModel"
        )
    return found
