"""What a run takes from the hub, where there may be no way to it."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import constants, get_session, is_offline_mode, try_to_load_from_cache

from fastgrpo.config import Config
from fastgrpo.data.read import FORMATS, find_files

ANSWER_S = 10.0
_NAME = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:.+)?")


def require_inputs(configs: Iterable[Config]) -> None:
    """``require_found`` for the model and the problems of a run, in every phase of it."""
    models: dict[str, str] = {}
    data: dict[str, str] = {}
    for config in configs:
        models[config.model.path] = "--model.path"
        data |= {config.data.train: "--data.train", config.data.held_out: "--data.held_out"}
    require_found(models, data)


def require_found(models: Mapping[str, str], data: Mapping[str, str]) -> None:
    """Asks once whether the hub can be reached, if one of these names is of it. If not, this process and those that it
    starts take everything from the hub's cache from now on: its client would try six times for each file.

    The mappings give for each name the setting that has it. Raises ValueError for what the cache does not hold either.
    """
    models, data = ({n: s for n, s in names.items() if _is_of_hub(n)} for names in (models, data))
    if not (models or data) or not (reason := _why_unreachable()):
        return
    constants.HF_HUB_OFFLINE = True  # what the variable does when the client is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    missing = [f"{setting} {name}" for name, setting in models.items() if not _is_cached_model(name)]
    missing += [f"{setting} {name}" for name, setting in data.items() if not _is_cached_data(name)]
    if missing:
        raise ValueError(
            f"the hub {constants.ENDPOINT} cannot be reached ({reason}), and its cache on this machine does not hold "
            f"{' and '.join(missing)}: give a local file or folder, or mend the connection"
        )


def _is_of_hub(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and not Path(name).exists() and Path(match["id"]).suffix not in FORMATS


def _why_unreachable() -> str:
    """Empty if the hub answers, whatever it says."""
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception as error:  # the client's errors share no base class
        return f"{type(error).__name__}: {error}"
    return ""


def _is_cached_model(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _is_cached_data(name: str) -> bool:
    try:
        return bool(find_files(name))
    except ValueError:
        return False
