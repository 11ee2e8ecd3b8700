"""A finished run of two steps, and what may be done to its files."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from fastgrpo.run.checkpoint.integrity import STATE, write_state
from fastgrpo.train import main
from tests.conftest import TINY

SETTINGS = ["--steps", "2", "--checkpoint.every_steps", "1", "--data.held_out", ""]


def resume(runs: Path, *arguments: str) -> int:
    """The exit code. One step more, so that the run has something to do."""
    return main([str(TINY), "--runs_dir", str(runs), *SETTINGS, "--steps", "3", "--resume", *arguments])


@pytest.fixture(scope="session")
def saved_runs(tmp_path_factory, tiny_base):
    runs = tmp_path_factory.mktemp("saved")
    shutil.copytree(tiny_base, runs / "tiny" / "base")
    assert main([str(TINY), "--runs_dir", str(runs), *SETTINGS]) == 0
    return runs


@pytest.fixture
def runs(saved_runs, tmp_path):
    """The folder of runs of one that has done two steps, and saved after each."""
    shutil.copytree(saved_runs, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def checkpoints(runs):
    return runs / "tiny" / "checkpoints"


@pytest.fixture
def newest(checkpoints):
    return checkpoints / "step_000002"


def restamp(checkpoint: Path) -> None:
    """Makes the checksums right again, as whoever wants the files to be read would."""
    state = json.loads((checkpoint / STATE).read_text())
    write_state(checkpoint, state["progress"], state["run"])


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def as_pickle(mark: Path) -> bytes:
    return pickle.dumps(Planted(mark))


def as_torch_file(mark: Path) -> bytes:
    content = io.BytesIO()
    torch.save(Planted(mark), content)
    return content.getvalue()


def plant_in_shards(shards: Path, mark: Path) -> None:
    """Puts an object in the place of a number of the optimizer, where torch's own planner unpickles what it finds."""
    metadata = dcp.FileSystemReader(shards).read_metadata()
    index = next(i for i in metadata.storage_data if i.fqn.endswith(".lr"))
    info, content = metadata.storage_data[index], as_torch_file(mark)
    with (shards / info.relative_path).open("ab") as file:
        info.offset, info.length = file.tell(), len(content)
        file.write(content)
    (shards / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_in_metadata(shards: Path, mark: Path) -> None:
    """Puts an object beside what belongs into the metadata."""
    metadata = dcp.FileSystemReader(shards).read_metadata()
    metadata.planner_data["more"] = Planted(mark)
    (shards / ".metadata").write_bytes(pickle.dumps(metadata))
