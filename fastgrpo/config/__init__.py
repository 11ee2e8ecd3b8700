"""Every setting of a run (`settings.py`), the published losses (`published_losses.py`), and how settings change."""

from fastgrpo.config.changes import check_types, differences, expanded_settings, flatten, with_paths, with_settings
from fastgrpo.config.names import RENAMED, given_on, refuse_old_arguments, refuse_old_names, refuse_unknown_choices
from fastgrpo.config.published_losses import PARTS, PRESETS, Advantage, Aggregation
from fastgrpo.config.settings import (
    RULES,
    CheckpointConfig,
    Config,
    DataConfig,
    DeadlineConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RewardConfig,
    RolloutConfig,
    SyncConfig,
)

__all__ = [
    "PARTS",
    "PRESETS",
    "RENAMED",
    "RULES",
    "Advantage",
    "Aggregation",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DeadlineConfig",
    "EvaluationConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RewardConfig",
    "RolloutConfig",
    "SyncConfig",
    "check_types",
    "differences",
    "expanded_settings",
    "flatten",
    "given_on",
    "refuse_old_arguments",
    "refuse_old_names",
    "refuse_unknown_choices",
    "with_paths",
    "with_settings",
]
