"""The trackers that there are: found by their names, and refused where their library is missing."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from fastgrpo.command_line import did_you_mean
from fastgrpo.track.tracker import Tracker


@dataclass(frozen=True)
class Library:
    tracker: str  # module:class
    needs: str  # the library as it is imported


TRACKERS = {
    "wandb": Library("fastgrpo.track.wandb:WandbTracker", "wandb"),
    "tensorboard": Library("fastgrpo.track.tensorboard:TensorBoardTracker", "tensorboard"),
    "trackio": Library("fastgrpo.track.trackio:TrackioTracker", "trackio"),
    "mlflow": Library("fastgrpo.track.mlflow:MlflowTracker", "mlflow"),
}


def require_trackers(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that there is not, or whose library is not installed."""
    for name in names:
        if ".py" in name:
            _own_tracker(name)
        elif name not in TRACKERS:
            raise ValueError(
                f"--track {name}: no such tracker{did_you_mean(name, list(TRACKERS)) or '.'} There are "
                f"{', '.join(TRACKERS)}, and one of your own is given as FILE.py:CLASS"
            )
        elif find_spec(TRACKERS[name].needs) is None:
            raise ValueError(
                f"--track {name} needs the library {TRACKERS[name].needs}, which is not installed: "
                f"pip install 'fastgrpo[{name}]'"
            )
    called: dict[str, str] = {}
    for name in names:
        if called.setdefault(short_name(name), name) != name:
            raise ValueError(
                f"--track {called[short_name(name)]} and {name} are both called {short_name(name)}: give one of the "
                f"classes another name"
            )


def make_tracker(name: str) -> Tracker:
    """The tracker of this name, its library imported."""
    if ".py" in name:
        return _own_tracker(name)()
    module, _, class_name = TRACKERS[name].tracker.partition(":")
    tracker: Tracker = getattr(importlib.import_module(module), class_name)()
    return tracker


def short_name(name: str) -> str:
    """What a tracker's files and messages call it: of one's own, the class."""
    return name.rpartition(":")[2]


def _own_tracker(name: str) -> type[Tracker]:
    """The class that ``FILE.py:CLASS`` names. Raises ValueError if there is none."""
    path, _, class_name = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"--track {name}: a tracker of your own is given as FILE.py:CLASS, and there is no {path!r}")
    spec = spec_from_file_location(f"fastgrpo_tracker_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # of a .py file
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file's code raises
        raise ValueError(f"--track {name}: {path} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    missing = [method for method in ("start", "log", "rollouts", "close") if not hasattr(found, method)]
    if not isinstance(found, type) or missing:
        what = f"lacks {', '.join(missing)}" if isinstance(found, type) else "is no class"
        raise ValueError(f"--track {name}: {class_name} in {path} {what}")
    return found
