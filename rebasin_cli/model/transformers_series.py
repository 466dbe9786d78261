"""Inputs of the models of transformers for series of numbers: forecasts, actions, features of regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rebasin_cli.model.example_input import Sampler

STEPS = 8
REGIONS = 4


def series(name: str, takes: Sequence[str], config: Any, sample: Sampler) -> list[dict[str, Any]]:
    """The layouts of one argument, each with the arguments that belong to it; empty if it is unknown."""
    if name == "past_values":
        return _forecast(takes, config, sample)
    if name in ("past_time_features", "past_observed_mask"):
        return [{}]  # comes with the values
    if name == "states":
        return [_actions(config, sample)]
    if name == "inputs":
        return [{name: sample.normal(1, STEPS, getattr(config, "d_model", STEPS))}]
    if name == "visual_feats" or "visual_feats" in takes:
        return [{}]
    return []


def _forecast(takes: Sequence[str], config: Any, sample: Sampler) -> list[dict[str, Any]]:
    """Past values (1, steps) or (1, steps, channels), with what is known of the time steps."""
    steps = getattr(config, "context_length", None) or 2 * STEPS
    lags = getattr(config, "lags_sequence", None)
    steps += max(lags) if isinstance(lags, (list, tuple)) and lags else 0
    channels = getattr(config, "num_input_channels", None) or getattr(config, "input_size", None) or 1
    ahead = getattr(config, "prediction_length", None) or 1
    features = getattr(config, "num_time_features", 0) or 0
    shapes = [(steps, channels), (steps,)]
    found = []
    for shape in reversed(shapes) if channels == 1 and "past_time_features" in takes else shapes:
        values = {"past_values": sample.normal(1, *shape)}
        if "past_observed_mask" in takes:
            values["past_observed_mask"] = torch.ones(1, *shape)
        if "past_time_features" in takes:
            values["past_time_features"] = sample.normal(1, steps, features)
            values["future_time_features"] = sample.normal(1, ahead, features)
            values["future_values"] = sample.normal(1, ahead, *shape[1:])
        found.append(values)
    return found


def _actions(config: Any, sample: Sampler) -> dict[str, Any]:
    return {
        "states": sample.normal(1, STEPS, config.state_dim),
        "actions": sample.normal(1, STEPS, config.act_dim),
        "rewards": sample.normal(1, STEPS, 1),
        "returns_to_go": sample.normal(1, STEPS, 1),
        "timesteps": torch.arange(STEPS)[None],
    }
