from tests.run.checkpoint.saved import checkpoints, newest, runs, saved_runs

__all__ = ["checkpoints", "newest", "runs", "saved_runs"]
