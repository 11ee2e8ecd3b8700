"""MLflow: files in RUN/mlruns, or the server that MLFLOW_TRACKING_URI names."""

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from fastgrpo.track.tables import table_of
from fastgrpo.track.tracker import TrackedRun

EXPERIMENT = "fastgrpo"
ID, LAST_STEP = "fastgrpo.id", "fastgrpo.last_step"
MOST_PARAMS, LONGEST_PARAM, LONGEST_NAME = 100, 6000, 250  # of one request; of a value; of a metric's name


class MlflowTracker:
    """A server's run is gone on with, by the tag that holds its last step; files are written anew."""

    def start(self, run: TrackedRun) -> int:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            shutil.rmtree(run.folder / "mlruns", ignore_errors=True)
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # a database needs more than mlflow-skinny brings
        self.client = MlflowClient(uri or (run.folder / "mlruns").resolve().as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        found = self.client.search_runs([experiment_id], f"tags.`{ID}` = '{run.id}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return int(found[0].data.tags.get(LAST_STEP, -1))
        self.run_id = self.client.create_run(experiment_id, run_name=run.name, tags={ID: run.id}).info.run_id
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in run.settings.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.run_id, params=params[first : first + MOST_PARAMS])
        return -1

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns, cells = table_of(rows)
        content = {"columns": columns, "data": cells}
        self.client.log_dict(self.run_id, content, f"rollouts/step_{step:06d}.json")

    def log(self, step: int, metrics: Mapping[str, float], unix_s: float) -> None:
        ms = int(unix_s * 1000)
        values = [Metric(_allowed(name), value, ms, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=values, tags=[RunTag(LAST_STEP, str(step))])

    def close(self) -> None:
        self.client.set_terminated(self.run_id, end_time=int(time.time() * 1000))


def _allowed(name: str) -> str:
    """The name as MLflow takes it. A slash becomes a dot: in files reward and reward/NAME would be a file and a
    folder."""
    return re.sub(r"[^\w.\- :]", "_", name.replace("/", "."))[:LONGEST_NAME]
