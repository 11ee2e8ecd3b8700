"""Checkpoints: sharded, written beside training, committed in one rename, and checked before they are trusted."""

from fastgrpo.run.checkpoint.checkpointer import Checkpointer, CheckpointError
from fastgrpo.run.checkpoint.integrity import committed, newest_intact
from fastgrpo.run.checkpoint.space import checkpoint_bytes, require_space

__all__ = ["CheckpointError", "Checkpointer", "checkpoint_bytes", "committed", "newest_intact", "require_space"]
