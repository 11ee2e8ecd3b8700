"""Whatever the files of a run folder hold, nothing of it runs: it is refused or set aside in words."""

import contextlib
import io
import pickle
import shutil
from pathlib import PosixPath

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from fastgrpo.run.checkpoint.integrity import SHARDS, damage, newest_intact
from fastgrpo.run.checkpoint.random_state import load_random_state
from fastgrpo.run.checkpoint.shards import load_shards
from tests.run.checkpoint import saved


@pytest.fixture
def mark(tmp_path):
    """Is there as soon as something was executed."""
    return tmp_path / "executed"


def test_the_plants_would_be_executed_by_those_who_unpickle(newest, mark):
    for plant in (saved.plant_in_shards, saved.plant_in_metadata):
        plant(newest / SHARDS, mark)
        with contextlib.suppress(dcp.api.CheckpointException):
            dcp.load({"optimizer": {"param_groups": [{"lr": 0.0}]}}, checkpoint_id=newest / SHARDS, no_dist=True)
        assert mark.exists(), plant.__name__
        mark.rmdir()
    for content, load in ((saved.as_pickle(mark), pickle.loads), (saved.as_torch_file(mark), load_unsafely)):
        load(content)
        mark.rmdir()


def load_unsafely(content):
    torch.load(io.BytesIO(content), weights_only=False)


@pytest.mark.parametrize("content", [saved.as_pickle, saved.as_torch_file])
@pytest.mark.parametrize("name", ["rollouts.codec", "shards/.metadata"])
def test_a_checkpoint_with_a_planted_file_is_set_aside_and_the_one_before_is_taken(
    newest, checkpoints, mark, name, content
):
    (newest / name).write_bytes(content(mark))
    saved.restamp(newest)
    path, complaints = newest_intact(checkpoints)
    assert path == checkpoints / "step_000001" and len(complaints) == 1
    assert "step_000002 is damaged" in complaints[0] and not mark.exists()


def test_metadata_with_a_planted_object_is_set_aside(newest, mark):
    saved.plant_in_metadata(newest / SHARDS, mark)
    saved.restamp(newest)
    assert "it names posix.mkdir, which no such metadata needs" in damage(newest) and not mark.exists()


def test_metadata_that_names_files_elsewhere_is_set_aside(newest):
    metadata = dcp.FileSystemReader(newest / SHARDS).read_metadata()
    next(iter(metadata.storage_data.values())).relative_path = "../../../etc/passwd"
    (newest / SHARDS / ".metadata").write_bytes(pickle.dumps(metadata))
    saved.restamp(newest)
    assert "names a file of another folder" in damage(newest)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_numbers_of_the_optimizer_are_not_unpickled(newest, mark, group):
    def load():
        state = {"optimizer": {"param_groups": [{"lr": 0.0}]}}
        load_shards(state, newest / SHARDS, group)
        return state

    before = load()["optimizer"]["param_groups"][0]["lr"]
    assert 0 < before < 1
    saved.plant_in_shards(newest / SHARDS, mark)
    with pytest.raises(ValueError, match=r"cannot be loaded .*weights_only"):
        load()
    assert not mark.exists()


def test_metadata_that_would_change_a_class_are_refused_and_it_is_as_it_was(newest):
    # GLOBAL PosixPath, then its state: (None, {"is_file": torch.Size}), and BUILD
    content = b"cpathlib\nPosixPath\n(N}S'is_file'\nctorch\nSize\nst\x62."
    (newest / SHARDS / ".metadata").write_bytes(content)
    before = PosixPath.is_file
    saved.restamp(newest)
    assert "it changes <class 'pathlib.PosixPath'>" in damage(newest)
    assert PosixPath.is_file is before
    # a member of an enum, which the process shares
    content = b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n(I0\ntR}S'_value_'\nI9\ns\x62."
    (newest / SHARDS / ".metadata").write_bytes(content)
    saved.restamp(newest)
    assert "it changes _MEM_FORMAT_ENCODING" in damage(newest)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"PK\x03\x04"])
def test_shards_that_hold_nothing_are_refused_in_words(newest, group, content):
    for file in (newest / SHARDS).glob("*.distcp"):
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be loaded .* --resume takes the checkpoint before"):
        load_shards({"optimizer": {"param_groups": [{"lr": 0.0}]}}, newest / SHARDS, group)


@pytest.mark.parametrize("content", [saved.as_pickle, saved.as_torch_file])
def test_random_states_are_not_unpickled(newest, mark, content):
    load_random_state(newest, 0)
    (newest / "random_state_0.codec").write_bytes(content(mark))
    with pytest.raises(ValueError, match=r"random_state_0\.codec holds no states"):
        load_random_state(newest, 0)
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_resume_executes_nothing_of_any_file_of_a_run_folder(saved_runs, tmp_path, mark, capfd):
    """A pickle in the place of each file in turn, checksums made right. Of a checkpoint's files it is also said in
    words, and the run goes on or is refused."""

    def plant_everywhere():
        files = [f for f in sorted((saved_runs / "tiny").rglob("*")) if f.is_file() and "step_000001" not in f.parts]
        assert len(files) > 20
        for file in files:  # the older checkpoint is read in the same way
            content = saved.as_torch_file if file.suffix in (".distcp", ".safetensors") else saved.as_pickle
            yield str(file.relative_to(saved_runs)), lambda f, content=content: f.write_bytes(content(mark))
        shards = f"tiny/checkpoints/step_000002/{SHARDS}/.metadata"
        yield shards, lambda file: saved.plant_in_metadata(file.parent, mark)
        yield shards, lambda file: saved.plant_in_shards(file.parent, mark)

    for name, plant in plant_everywhere():
        shutil.copytree(saved_runs, runs := tmp_path / "runs")
        plant(runs / name)
        for checkpoint in (runs / "tiny" / "checkpoints").glob("step_*"):
            if name.startswith(str(checkpoint.relative_to(runs))) and not name.endswith("state.json"):
                saved.restamp(checkpoint)
        code = None
        with contextlib.suppress(Exception, SystemExit):
            code = saved.resume(runs)
        said = capfd.readouterr()
        assert not mark.exists(), name
        if "checkpoints/" in name:
            assert code in (0, 2) and "Traceback" not in said.out + said.err, f"{name}: {code}\n{said.err}"
        if dist.is_initialized():  # the run left in the middle
            dist.destroy_process_group()
        shutil.rmtree(runs)
