"""Which checkpoint a run goes on from, whatever happened to the files."""

import json
import os
import shutil
import traceback

import pytest
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from transformers import AutoModelForCausalLM

from fastgrpo.command_line.exit_codes import FAILED
from fastgrpo.run.checkpoint import checkpointer, committed, memory, newest_intact, remove
from fastgrpo.run.checkpoint.integrity import STATE, _checksum_of, damage, export_damage, write_state
from fastgrpo.run.checkpoint.shards import reason_of
from tests.run.checkpoint import saved


def rewrite(checkpoint, change):
    """state.json with other content, and the checksum that goes with it."""
    state = json.loads((checkpoint / STATE).read_text())
    progress = state["progress"]
    change(progress)
    write_state(checkpoint, progress, state["run"])


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("step_1000000", "step_999999", "step_000002", "damaged_step_000003", ".step_000004", "step_x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_000005").write_text("no folder")
    assert [p.name for p in committed(tmp_path)] == ["step_000002", "step_999999", "step_1000000"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 200_000, "RecursionError"),
        ("", "state.json cannot be read"),
        ("[]", "state.json cannot be read"),
        ("{}", "state.json cannot be read"),
        ('{"progress": {"step": 2}, "files": {}, "checksum": 1}', "another checksum"),
        ("\xff", "state.json cannot be read"),
    ],
)
def test_a_state_that_is_no_state_is_said_and_the_one_before_is_taken(newest, checkpoints, text, says):
    (newest / STATE).write_bytes(text.encode("latin-1"))
    path, complaints = newest_intact(checkpoints)
    assert path == checkpoints / "step_000001" and says in complaints[0]
    assert (checkpoints / "damaged_step_000002").is_dir()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda progress: progress.update(unknown=1), "unexpected keyword argument 'unknown'"),
        (lambda progress: progress.update(step="2"), "step is wrong"),
        (lambda progress: progress.update(step=0), "step is wrong"),
        (lambda progress: progress.update(updates=None), "updates is wrong"),
        (lambda progress: progress.update(step=1), "is of step 1"),
    ],
)
def test_progress_that_no_run_writes_is_said(newest, change, says):
    rewrite(newest, change)
    assert says in damage(newest)


def test_one_digit_of_the_state_is_noticed(newest):
    text = (newest / STATE).read_text()
    (newest / STATE).write_text(text.replace('"updates": 4', '"updates": 5'))
    assert "another checksum" in damage(newest)


@pytest.mark.parametrize("name", ["shards/.metadata", "shards/__0_0.distcp", "rollouts.codec", "random_state_0.codec"])
def test_a_file_that_a_run_needs_sets_a_checkpoint_aside(newest, name):
    assert damage(newest) == ""
    content = (newest / name).read_bytes()
    for broken in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        (newest / name).write_bytes(broken)
        assert damage(newest).startswith(name)
    (newest / name).unlink()
    assert damage(newest) == f"{name} is missing"


def test_a_broken_export_alone_is_said_and_made_anew_by_a_resume(runs, newest, capfd):
    weights = AutoModelForCausalLM.from_pretrained(newest / "hf").state_dict()
    content = (newest / "hf" / "model.safetensors").read_bytes()
    (newest / "hf" / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert saved.resume(runs) == 0
    said = capfd.readouterr().out.replace("\n", " ")
    assert "the export of" in said and "is damaged: hf/model.safetensors has" in said and "it is made anew" in said
    assert (newest / "hf" / "model.safetensors").read_bytes() == content
    assert damage(newest) == export_damage(newest) == ""
    assert weights.keys() == AutoModelForCausalLM.from_pretrained(newest / "hf").state_dict().keys()


def test_links_to_another_disk_are_followed_and_never_emptied(runs, checkpoints, tmp_path):
    elsewhere = tmp_path / "larger_disk"
    checkpoints.rename(elsewhere)
    checkpoints.symlink_to(elsewhere)
    (tmp_path / "archive").mkdir()
    (elsewhere / "step_000001").rename(tmp_path / "archive" / "first")
    (elsewhere / "step_000001").symlink_to(tmp_path / "archive" / "first")
    (elsewhere / ".step_000009").symlink_to(tmp_path / "archive")
    assert saved.resume(runs, "--checkpoint.keep_last", "1") == 0
    assert [p.name for p in committed(checkpoints)] == ["step_000003"] and checkpoints.is_symlink()
    assert (tmp_path / "archive" / "first" / STATE).exists()


def test_a_damaged_checkpoint_that_is_a_link_is_set_aside(checkpoints, newest, tmp_path):
    newest.rename(tmp_path / "moved")
    newest.symlink_to(tmp_path / "moved")
    (tmp_path / "moved" / STATE).unlink()
    (checkpoints / "damaged_step_000002").symlink_to(tmp_path / "older")
    path, _ = newest_intact(checkpoints)
    assert path == checkpoints / "step_000001" and (checkpoints / "damaged_step_000002").resolve() == tmp_path / "moved"


def test_a_place_where_no_checkpoint_can_be_written_is_refused_in_words(runs, checkpoints, capfd):
    shutil.rmtree(checkpoints)
    checkpoints.symlink_to(runs / "nowhere")
    assert saved.resume(runs) == 2
    assert "checkpoints cannot be written to" in capfd.readouterr().err.replace("\n", " ")


def test_removing_a_link_leaves_its_target(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("link", "folder", "nothing"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_every_byte_is_on_the_disk_before_a_checkpoint_has_its_name(runs, checkpoints, monkeypatch):
    """A loss of power keeps what was synced; a rename that is kept without the bytes would be a checkpoint of holes."""
    synced, at_rename = [], {}
    replace, fsync = os.replace, os.fsync

    def noted(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def watched(source, target):
        if os.path.basename(source).startswith(".step_"):
            inside = [str(p) for p in (source, *source.rglob("*"))]
            at_rename.update({str(p): p in synced for p in inside})
            synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(checkpointer.os, "replace", watched)
    assert saved.resume(runs) == 0
    assert len(at_rename) > 8 and [p for p, was_synced in at_rename.items() if not was_synced] == []
    assert str(checkpoints) in synced  # the folder that holds the name, afterwards


def test_a_checkpoint_of_another_run_is_not_gone_on_from(newest, checkpoints):
    assert damage(newest, json.loads((newest / STATE).read_text())["run"]) == ""
    assert "is of another run" in damage(newest, "with another seed")
    path, complaints = newest_intact(checkpoints, "with another seed")
    assert path is None and len(complaints) == 2


def test_a_link_to_a_disk_that_is_not_there_is_said(newest, checkpoints):
    remove(newest)
    newest.symlink_to("/not/mounted")
    with pytest.raises(ValueError, match="step_000002 is a link to /not/mounted, which is not there: mount it, or"):
        newest_intact(checkpoints)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../run.json"])
def test_a_file_that_is_no_checkpoints_is_said(newest, name):
    state = json.loads((newest / STATE).read_text())
    del state["checksum"]
    state["files"][name] = [1, 2]
    (newest / STATE).write_text(json.dumps({**state, "checksum": _checksum_of(state)}))
    assert damage(newest) == f"state.json names {name!r}, which is no file of a checkpoint"


def test_a_kill_while_the_state_is_written_anew_leaves_the_old_one(newest, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastgrpo.json_lines.to_disk", killed)
    with pytest.raises(KeyboardInterrupt):
        write_state(newest, {"step": 3}, "another")
    assert damage(newest) == ""


def test_an_export_that_cannot_be_made_anew_is_said_and_nothing_of_it_stays(newest, runs, monkeypatch, capfd):
    (newest / "hf" / "config.json").unlink()

    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("fastgrpo.run.checkpoint.export._write_weights", full)
    assert saved.resume(runs) == FAILED  # at the next checkpoint, for want of the same space
    said = capfd.readouterr().out.replace("\n", " ")
    assert "step_000002 could not be written: SafetensorError: No space left on device" in said
    assert not (newest / ".hf").exists() and damage(newest) == ""


def test_what_torch_hides_of_a_write_that_failed_is_said_in_a_line():
    cause = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    error = CheckpointException("write", {0: (cause, traceback.extract_stack())})
    assert reason_of(error).startswith("a file could not be written whole: is the disk full")
    assert reason_of(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("line", "group", "files"),
    [
        ("0::/job/step", "job", {"max": 1000, "current": 900, "cache": "inactive_file 50"}),
        (
            "5:cpu,memory:/job",
            "memory/job",
            {"limit_in_bytes": 1000, "usage_in_bytes": 900, "cache": "total_inactive_file 50"},
        ),
    ],
)
def test_the_memory_that_is_free_is_a_containers(line, group, files, tmp_path, monkeypatch):
    (tmp_path / group).mkdir(parents=True)
    cache = files.pop("cache")
    for name, value in files.items():
        (tmp_path / group / f"memory.{name}").write_text(f"{value}\n")
    (tmp_path / group / "memory.stat").write_text(f"anon 850\n{cache}\n")
    (tmp_path / "mine").write_text(f"{line}\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "MINE", tmp_path / "mine")
    assert memory.free_memory_bytes() == 150
    monkeypatch.setattr(memory, "MINE", tmp_path / "none")
    assert memory.free_memory_bytes() > 2**20
