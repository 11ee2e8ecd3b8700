"""Which runs a folder lets go on: those of this version's format alone."""

import json
from pathlib import Path

import pytest

from fastgrpo import __version__
from fastgrpo.config import Config
from fastgrpo.report import write_report
from fastgrpo.run import setup
from fastgrpo.run.folder import FORMAT, RunFolder


@pytest.fixture
def config(tmp_path):
    return Config(runs_dir=str(tmp_path), resume=True)


@pytest.fixture
def folder(config):
    """Of a run that has begun."""
    folder = RunFolder(Path(config.run_dir))
    folder.base.mkdir(parents=True)
    folder.begin(config, {"algorithm": {}})
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
    folder.begin(config, {})
    assert json.loads(folder.facts.read_text())["format"] == FORMAT
    assert not folder.metrics.read() and folder.base.exists()


@pytest.mark.parametrize("content", ["{", "[]", "7", json.dumps({"format": FORMAT})])
def test_a_damaged_run_json_is_said_to_be(content, folder, config):
    folder.facts.write_text(content)
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        folder.check(config, {})


def test_an_older_run_is_refused_before_weights_load_and_still_has_its_report(train, monkeypatch, capfd):
    assert train("--steps", "1", "--data.held_out", "") == 0
    rewrite(RunFolder(train.folder), format=None, fastgrpo=None)
    monkeypatch.setattr(setup, "load_policy", None)
    assert train("--resume", "--data.held_out", "") == 2
    assert "without a format number" in capfd.readouterr().err
    assert write_report(train.folder).is_file()
