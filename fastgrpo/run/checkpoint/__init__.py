"""Checkpoints: sharded, written beside training, committed in one rename, and checked before they are trusted."""

from fastgrpo.run.checkpoint.checkpointer import Checkpointer, CheckpointError
from fastgrpo.run.checkpoint.disk import checkpoint_bytes, remove, require_space
from fastgrpo.run.checkpoint.export import Exporter
from fastgrpo.run.checkpoint.integrity import committed, newest_intact

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Exporter",
    "checkpoint_bytes",
    "committed",
    "newest_intact",
    "remove",
    "require_space",
]
