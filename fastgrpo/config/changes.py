"""A configuration as JSON, what two differ in, and one with some settings changed."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, get_type_hints

from fastgrpo.command_line import expanded
from fastgrpo.config.names import refuse_old_names
from fastgrpo.config.published_losses import PARTS
from fastgrpo.config.settings import RULES, SECTIONS, Config
from fastgrpo.config.types import fits, near, said

PATHS = [name for name, rules in RULES.items() if rules.get("is_path") and name != "runs_dir"]


def flatten(config: Config) -> dict[str, Any]:
    """Every setting by its command-line name, as JSON holds it."""
    return dict(json.loads(json.dumps({name: attrgetter(name)(config) for name in RULES})))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What keeps `new` from continuing a run that was started as `old`; both as `flatten` gives them."""
    free = {name for name, rules in RULES.items() if rules.get("free_on_resume")}
    names = sorted((old.keys() | new.keys()) - free)
    return [f"--{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names if old.get(n) != new.get(n)]


def fingerprint(config: Config) -> str:
    """A checksum of the settings that a run and its continuation share, wherever they are."""
    free = {name for name, rules in RULES.items() if rules.get("free_on_resume") or rules.get("is_path")}
    shared = {name: value for name, value in flatten(config).items() if name not in {*free, "name"}}
    return hashlib.blake2b(json.dumps(shared, sort_keys=True).encode(), digest_size=16).hexdigest()


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with some settings changed, by their command-line names: ``{"rollout.group_size": 16}``.

    A loss brings all its parts, whatever they were before; those that are given beside it win.

    Raises ValueError for a name that there is not, and for a value of another type.
    """
    refuse_old_names(settings.items())
    for name, value in sorted(settings.items(), key=lambda given: given[0] != "objective.loss"):
        section, _, field_name = name.rpartition(".")
        owner: Any = getattr(config, section, None) if section else config
        if field_name not in getattr(owner, "__dataclass_fields__", ()):
            raise ValueError(f"there is no setting --{name}")
        hint = get_type_hints(type(owner))[field_name]
        if not fits(value, hint):
            raise ValueError(f"--{name} cannot be {value!r}: it is {said(hint)}{near(value, hint)}")
        parts = dict.fromkeys(PARTS) if name == "objective.loss" else {}
        changed: Any = dataclasses.replace(owner, **{field_name: value}, **parts)
        config = dataclasses.replace(config, **{section: changed}) if section else changed
    return config


def with_paths(config: Config) -> Config:
    """The configuration with its paths filled in: ``~`` and ``$HOME``, and ``{run_dir}``, so that a recipe can start
    from what it makes itself."""
    config = with_settings(config, {"runs_dir": expanded(config.runs_dir)})
    paths = {name: attrgetter(name)(config) for name in PATHS}
    return with_settings(config, {name: _filled(value, config.run_dir) for name, value in paths.items()})


def expanded_settings(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings as `flatten` gives them, with their paths filled in: older runs noted them as they were given."""
    return {n: expanded(v) if n in PATHS and isinstance(v, str) else v for n, v in flat.items()}


def _filled(value: Any, run_dir: str) -> Any:
    """A path, or each of several."""
    if isinstance(value, tuple):
        return tuple(_filled(one, run_dir) for one in value)
    return expanded(value).replace("{run_dir}", run_dir)


def check_types(config: Config) -> None:
    """Raises ValueError for a setting of another type than it should be: nobody type-checks a recipe."""
    for name, section in SECTIONS.items():
        if type(found := getattr(config, name)) is not section:
            raise ValueError(f"{name} must be a {section.__name__}, got {type(found).__name__}")
    with_settings(config, {name: attrgetter(name)(config) for name in RULES})
