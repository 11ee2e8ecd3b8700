"""An export is tried before a run begins, and the first one is loaded back: what is wrong is said and ends nothing."""

import json

from fastgrpo.run.checkpoint import Exporter, export
from tests.run.test_run import steps_of


def test_the_first_export_of_a_run_is_compared_and_no_other(train, monkeypatch, capfd):
    compared = []
    differences = Exporter.differences

    def noted(self, folder, weights):
        compared.append(folder.parent.name)
        return differences(self, folder, weights)

    monkeypatch.setattr(Exporter, "differences", noted)
    assert train("--steps", "2", "--checkpoint.every_steps", "1", "--data.held_out", "") == 0
    assert train("--steps", "3", "--checkpoint.every_steps", "1", "--data.held_out", "", "--resume") == 0
    assert compared == ["step_000001"]
    assert "is not what was trained" not in capfd.readouterr().out


def test_an_export_that_differs_is_said_and_the_run_goes_on(train, monkeypatch, capfd):
    write = export._write_weights

    def wrong(folder, weights):
        write(folder, {n: w + (n == "model.norm.weight") for n, w in weights.items()})

    monkeypatch.setattr(export, "_write_weights", wrong)
    assert train("--steps", "2", "--data.held_out", "") == 0
    said = capfd.readouterr().out.replace("\n", " ")
    assert "warning: the export of step_000002 is not what was trained: model.norm.weight is another tensor" in said
    assert steps_of(train.folder) == [1, 2]


def test_an_export_that_cannot_be_loaded_is_said_and_the_run_goes_on(train, monkeypatch, capfd):
    def broken(*_):
        raise RuntimeError("no such class")

    monkeypatch.setattr(export, "reload_differences", broken)
    assert train("--steps", "2", "--data.held_out", "") == 0
    said = capfd.readouterr().out.replace("\n", " ")
    assert "is not what was trained: it cannot be loaded (RuntimeError: no such class)" in said


def test_a_run_whose_exports_cannot_be_written_is_refused_before_its_folder_is_touched(train, monkeypatch, capfd):
    def cannot(model, weights):
        raise NotImplementedError("no way back")

    monkeypatch.setattr(export, "revert_weight_conversion", cannot)
    assert train() == 2
    assert "cannot be exported, and so no checkpoint could be written: NotImplementedError: no way back" in (
        capfd.readouterr().err.replace("\n", " ")
    )
    assert sorted(p.name for p in train.folder.iterdir()) == [".lock", "base"]


def test_generation_settings_that_transformers_refuses_to_save_are_exported_as_they_came(train):
    path = train.folder / "base" / "model" / "generation_config.json"
    settings = json.loads(path.read_text()) | {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    path.write_text(json.dumps(settings))
    assert train("--steps", "1", "--data.held_out", "") == 0
    exported = train.folder / "checkpoints" / "step_000001" / "hf" / "generation_config.json"
    assert exported.read_bytes() == path.read_bytes()
