"""Which runs a folder lets go on, what it says of broken ones, and what an --overwrite leaves."""

import errno
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from fastgrpo import __version__
from fastgrpo.config import Config
from fastgrpo.data import identity_of
from fastgrpo.report import write_report
from fastgrpo.run import setup
from fastgrpo.run.folder import FORMAT, RunFolder
from fastgrpo.run.inputs import Inputs
from fastgrpo.run.same_data import data_of
from fastgrpo.types import Prompt


@pytest.fixture
def config(tmp_path):
    return Config(runs_dir=str(tmp_path), resume=True)


@pytest.fixture
def folder(config):
    """Of a run that has begun."""
    folder = RunFolder(Path(config.run_dir))
    folder.base.mkdir(parents=True)
    folder.begin(config, {"algorithm": {}}, print)
    folder.metrics.append([{"step": 0}])
    return folder


def rewrite(folder, **facts):
    """Changes run.json; None removes an entry."""
    facts = json.loads(folder.facts.read_text()) | facts
    folder.facts.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))


def test_a_run_notes_its_format_and_the_version_that_started_it(folder, config):
    facts = json.loads(folder.facts.read_text())
    assert (facts["format"], facts["fastgrpo"]) == (FORMAT, __version__)
    folder.check(config, {})  # it may go on


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    "facts, found, by",
    [
        ({"format": None, "fastgrpo": None}, "without a format number", "the version of fastgrpo that started it"),
        ({"format": 1, "fastgrpo": "0.0.9"}, "of format 1,", "fastgrpo 0.0.9 that started it"),
        ({"format": FORMAT + 1, "fastgrpo": "9.9"}, f"of format {FORMAT + 1},", "fastgrpo 9.9 that started it"),
    ],
)
def test_a_run_of_another_format_is_refused_in_words(facts, found, by, resume, folder, tmp_path):
    rewrite(folder, **facts)
    needed = f"fastgrpo {__version__} can continue format {FORMAT} only"
    with pytest.raises(ValueError, match=f"{folder.path} .*{found}.*{needed}.*{by}.*--name.*--overwrite"):
        folder.check(Config(runs_dir=str(tmp_path), resume=resume, seed=9), {})


def test_a_run_of_another_format_can_be_overwritten(folder, tmp_path):
    rewrite(folder, format=None)
    config = Config(runs_dir=str(tmp_path), overwrite=True)
    folder.check(config, {})
    folder.begin(config, {}, print)
    assert json.loads(folder.facts.read_text())["format"] == FORMAT
    assert not folder.metrics.read() and folder.base.exists()


def overwriting(config):
    return replace(config, resume=False, overwrite=True)


# Broken files: what is advised must work


BROKEN_FACTS = ["{", "[]", "7", "", "[" * 200_000, "\xff", json.dumps({"format": FORMAT}),
                json.dumps({"format": FORMAT, "config": []}),
                json.dumps({"format": FORMAT, "config": {}, "algorithm": [1]})]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN_FACTS)
def test_a_damaged_run_json_is_said_to_be_and_the_run_can_be_overwritten(content, folder, config):
    folder.facts.write_text(content)
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"run\.json cannot be read .*: --overwrite the run \(without --resume\)"):
            folder.check(replace(config, resume=resume), {})
    folder.check(overwriting(config), {})
    folder.begin(overwriting(config), {}, print)
    folder.check(config, {})
    assert not folder.metrics.path.exists()


BROKEN_LINES = [b"{}", b"[1]", b"null", b"{", b"[" * 100_000, b'{"step": true}', b'{"step": 1.5}', b'{"step": "1"}',
                b"\xff\xfe", b"9" * 5000, b'{"step": 100000000000000000000}', b""]  # fmt: skip


@pytest.mark.parametrize("name", ["metrics", "rollouts"])
@pytest.mark.parametrize("line", BROKEN_LINES)
def test_a_broken_record_is_named_before_training_and_without_it_the_run_goes_on(line, name, folder, config):
    lines = getattr(folder, name)
    lines.append([{"step": 1}])
    whole = lines.path.read_bytes()
    lines.path.write_bytes(whole + line + b"\n" + b'{"step": 2}\n')
    number = whole.count(b"\n") + 1
    with pytest.raises(ValueError, match=f"{name}.jsonl, line {number} is .*Remove that line and --resume, or --over"):
        folder.check(config, {})
    folder.check(overwriting(config), {})
    with pytest.raises(ValueError, match="holds a run already"):
        folder.check(replace(config, resume=False), {})
    lines.path.write_bytes(whole + b'{"step": 2}\n')
    folder.check(config, {})
    lines.keep_until(1)
    assert lines.path.read_bytes() == whole


def test_a_torn_last_record_is_no_broken_one(folder, config):
    whole = folder.metrics.path.read_bytes()
    folder.metrics.path.write_bytes(whole + b'{"step": 1, "lo')
    folder.check(config, {})
    folder.metrics.keep_until(7)
    assert folder.metrics.path.read_bytes() == whole


def test_steps_without_a_run_json_are_nobodys_to_overwrite_until_it_is_put_back_or_they_are_removed(folder, config):
    facts = folder.facts.read_bytes()
    folder.facts.unlink()
    for asked in (config, replace(config, resume=False)):
        with pytest.raises(ValueError, match=r"no run\.json.*put that file back, remove what is left.*another --name"):
            folder.check(asked, {})
    with pytest.raises(ValueError, match=r"no run\.json; there is metrics\.jsonl\).*, or remove the files"):
        folder.check(overwriting(config), {})
    folder.metrics.path.rename(folder.path / "kept")
    folder.check(replace(config, resume=False), {})
    folder.rollouts.path.write_text("somebody's\n")
    with pytest.raises(ValueError, match=r"no run\.json"):
        folder.check(replace(config, resume=False), {})
    folder.rollouts.path.unlink()
    (folder.path / "kept").rename(folder.metrics.path)
    folder.facts.write_bytes(facts)
    folder.check(config, {})


def test_a_start_that_was_killed_early_holds_nobody_up(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for name in ("base", "engines"):
        (folder.path / name).mkdir(parents=True)
    for name in (".lock", ".run.json.partial", "base/model", "engines/engine_0.log"):
        (folder.path / name).touch()
    for resume, overwrite in [(False, False), (True, False), (False, True)]:
        folder.check(Config(runs_dir=str(tmp_path), resume=resume, overwrite=overwrite), {})


# --overwrite


def test_an_overwrite_removes_links_and_nothing_behind_them(folder, config, tmp_path):
    disk = tmp_path / "large_disk"
    (disk / "step_000001").mkdir(parents=True)
    (disk / "notes.txt").write_text("mine")
    (folder.path / "checkpoints").symlink_to(disk)
    (folder.path / "rollouts.jsonl").symlink_to(disk / "notes.txt")
    (folder.path / "report.html").symlink_to(tmp_path / "nowhere")
    (folder.path / "skipped").mkdir()
    (folder.path / "skipped" / "link").symlink_to(disk)
    (folder.path / "engines").mkdir()
    said = []
    folder.check(overwriting(config), {})
    folder.begin(overwriting(config), {}, said.append)
    assert sorted(p.name for p in folder.path.iterdir()) == ["base", "engines", "run.json"]
    assert (disk / "notes.txt").read_text() == "mine" and (disk / "step_000001").is_dir()
    assert f"{folder.checkpoints} was a link to {disk}, where everything stays as it is" in said and len(said) == 3


def test_an_overwrite_leaves_hidden_files(folder, config):
    (folder.path / ".git").mkdir()
    folder.begin(overwriting(config), {}, print)
    assert (folder.path / ".git").is_dir() and not folder.metrics.path.exists()


def test_an_overwrite_that_fails_can_be_done_once_more_and_nothing_else(folder, config, monkeypatch):
    for name in ("checkpoints", "skipped", "track"):
        (folder.path / name).mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path / "file"))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        with pytest.raises(ValueError, match=r"Permission denied.*then --overwrite once more"):
            folder.begin(overwriting(config), {"recipe": "new"}, print)
    for asked in (config, replace(config, resume=False)):
        with pytest.raises(ValueError, match="holds what an unfinished --overwrite left: --overwrite it once more"):
            folder.check(asked, {})
    folder.check(overwriting(config), {})
    folder.begin(overwriting(config), {"recipe": "new"}, print)
    assert sorted(p.name for p in folder.path.iterdir()) == ["base", "run.json"]
    assert json.loads(folder.facts.read_text())["recipe"] == "new"
    folder.check(config, {})


# The data


def prompts(count=200, **of_row_9):
    made = [Prompt(2 * n, f"{n}?", str(n), prompt_ids=np.arange(n % 7 + 1, dtype=np.int32)) for n in range(count)]
    return [replace(p, **of_row_9) if n == 9 else p for n, p in enumerate(made)]


def data(train, held_out=()):
    return {"train": identity_of(train), "held_out": identity_of(held_out)}


@pytest.mark.parametrize(
    "now, said",
    [
        (data(prompts(199)), "train: 200 problems there, 199 now"),
        (data(prompts(answer="?")), "train: other prompts or answers, the first of them in rows 17 to 22"),
        (data(prompts(text="?")), "train: other prompts or answers, the first of them in rows 17 to 22"),
        (data(prompts(columns={"a": 1})), "train: other prompts or answers, the first of them in rows 17 to 22"),
        (data(prompts(prompt_ids=np.zeros(3, np.int32))), "the first of them in rows 17 to 22"),
        (data(prompts()[::-1]), "train: other prompts or answers, the first of them in row"),
        (data(prompts(), prompts(1)), "held_out: 0 problems there, 1 now"),
    ],
)
def test_a_run_goes_on_with_the_data_that_it_began_with(now, said, folder, config):
    folder.begin(config, {"algorithm": {}, "data": json.loads(json.dumps(data(prompts())))}, print)
    folder.check_data(config, data(prompts()))
    with pytest.raises(ValueError, match=f"{said}.*give back the data that it began with, or start anew"):
        folder.check_data(config, now)
    folder.check_data(overwriting(config), now)


@pytest.mark.parametrize("there", [[], 1, {}, {"problems": 200}, {"problems": 200, "checksums": 1}])
def test_an_identity_that_is_none_is_another(there, folder, config):
    folder.begin(config, {"algorithm": {}, "data": {"train": there}}, print)
    with pytest.raises(ValueError, match="holds a run on other data"):
        folder.check_data(config, data(prompts()))


def test_a_run_that_has_not_noted_its_data_goes_on(folder, config):
    folder.check_data(config, data(prompts()))


class SecondOfTwo:
    """A rank whose first read other prompts."""

    rank = 1

    def __init__(self, first):
        self.first = first

    def gather(self, items):
        return [self.first, *items]

    def together(self, work):
        return work()


def test_ranks_that_read_other_prompts_are_named():
    inputs = Inputs(None, [prompts(), prompts()], [])
    facts = {"train": identity_of(prompts()), "train, phase 2": identity_of(prompts()), "held_out": identity_of([])}
    assert data_of(inputs, SecondOfTwo(facts)) == facts
    with pytest.raises(ValueError, match=r"rank 1 reads other data .*phase 2: 3 problems there, 200"):
        data_of(inputs, SecondOfTwo(facts | {"train, phase 2": identity_of(prompts(3))}))


# Whole runs


def test_a_run_that_is_at_work_is_let_alone_and_other_data_are_noticed(train, capfd):
    folder, settings = RunFolder(train.folder), ("--steps", "1", "--data.held_out", "")
    with folder.lock(print):
        for mode in ([], ["--resume"], ["--overwrite"]):
            assert train(*settings, *mode) == 2
            assert f"{train.folder} is in use by process {os.getpid()} on " in capfd.readouterr().err
    assert train(*settings) == 0
    rows = train.folder / "base" / "train.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[::-1]))
    assert train("--resume", "--steps", "2", "--data.held_out", "") == 2
    assert "train: other prompts or answers, the first of them in row 0" in capfd.readouterr().err
    rows.write_text("".join(lines))
    assert train("--resume", "--steps", "2", "--data.held_out", "") == 0


def test_too_few_open_files_are_refused_in_words(train, monkeypatch, capfd):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 4096))
    assert train() == 2
    assert "may have 16 files open here, and a rank needs 64 at least: raise the limit" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["example_of", "fit"])  # where ranks agree, and where they do not
def test_what_the_system_refuses_a_start_is_said_and_no_resume_is_advised(place, train, monkeypatch, capfd):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system", "a")

    monkeypatch.setattr(setup, place, refuse)
    assert train("--data.held_out", "") == 2
    if dist.is_initialized():
        dist.destroy_process_group()
    said = capfd.readouterr().err
    assert "a: Read-only file system: take a folder that this user may write in" in said
    assert "--resume" not in said and "Traceback" not in said


def test_an_older_run_is_refused_before_weights_load_and_still_has_its_report(train, monkeypatch, capfd):
    assert train("--steps", "1", "--data.held_out", "") == 0
    rewrite(RunFolder(train.folder), format=None, fastgrpo=None)
    monkeypatch.setattr(setup, "load_policy", None)
    assert train("--resume", "--data.held_out", "") == 2
    assert "without a format number" in capfd.readouterr().err
    assert write_report(train.folder).is_file()
