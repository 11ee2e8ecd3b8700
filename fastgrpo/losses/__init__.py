"""The published losses by name, each a choice of parts; docs/losses.md is the user's page."""

from fastgrpo.losses.presets import PARTS, PRESETS, Advantage, Aggregation, Loss, Preset, Ratio, Surrogate

__all__ = ["PARTS", "PRESETS", "Advantage", "Aggregation", "Loss", "Preset", "Ratio", "Surrogate"]
