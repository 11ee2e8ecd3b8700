"""The prompt's words and the verifier of the run that a checkpoint comes from."""

from dataclasses import replace
from pathlib import Path

from fastgrpo.evaluation.settings import Settings
from fastgrpo.json_lines import read_json

FOLDERS_ABOVE = 4  # of RUN/checkpoints/step_000040/hf and RUN/base/model, the model's own folder included


def as_trained(settings: Settings) -> Settings:
    """The settings with the prompt and the verifier of the model's run, unless the user gave others.

    Raises ValueError if the model is in no run folder.
    """
    facts = run_of(settings.model)
    if facts is None:
        raise ValueError(
            f"--as_trained asks in the words of the model's run, and {settings.model} is in no run folder: give a "
            f"checkpoint, as runs/NAME/checkpoints/step_000040/hf, or --template"
        )
    run = read_json(facts)
    config = run.get("config")
    if not isinstance(config, dict) or not {"data.suffix", "data.chat_template"} <= config.keys():
        raise ValueError(f"{facts} cannot be read (it does not say how the run asked): give --template")
    template = config.get("data.template") or "{problem}" + config["data.suffix"]
    return replace(
        settings,
        template=settings.template or template,
        chat_template=bool(config["data.chat_template"]) if not settings.template else settings.chat_template,
        special_tokens=bool(config.get("data.special_tokens", True)) and settings.special_tokens,
        rule=settings.rule or run.get("reward", ""),
    )


def run_of(model: str) -> Path | None:
    """``run.json`` of the run that a model's folder is in; None if it is in none."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    above = [folder.resolve(), *folder.resolve().parents][:FOLDERS_ABOVE]
    return next((p / "run.json" for p in above if (p / "run.json").is_file()), None)
