"""A run's curves in W&B, TensorBoard, trackio or MLflow, sent from what the run writes down, by a process beside it."""

from fastgrpo.track.libraries import require_trackers
from fastgrpo.track.process import TrackingProcess
from fastgrpo.track.tracker import TrackedRun, Tracker

__all__ = ["TrackedRun", "Tracker", "TrackingProcess", "require_trackers"]
