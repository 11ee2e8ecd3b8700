"""Whether what a checkpoint holds is what was written, and which checkpoint a run can go on from."""

import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

from fastgrpo.codec.conforms import conforms
from fastgrpo.run.checkpoint.disk import files_of, remove
from fastgrpo.run.checkpoint.in_flight import read_rollouts
from fastgrpo.run.checkpoint.shards import read_metadata
from fastgrpo.trainer import Progress

STATE, SHARDS, EXPORT = "state.json", "shards", "hf"

Files = dict[str, list[int]]
"""The size and the checksum of every file of a checkpoint, by its path in there."""


def committed(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    numbers = {p: int(p.name[5:]) for p in folder.glob("step_*") if re.fullmatch(r"step_\d{6,12}", p.name)}
    return sorted((p for p in numbers if p.is_dir()), key=numbers.__getitem__)


def write_state(path: Path, progress: dict[str, Any]) -> None:
    """Writes down the run's progress and what the checkpoint holds: the last file of one."""
    files = {str(f.relative_to(path)): [f.stat().st_size, checksum(f)] for f in files_of(path) if f != path / STATE}
    state = {"progress": progress, "files": files}
    (path / STATE).write_text(json.dumps({**state, "checksum": _checksum_of(state)}, indent=1))


def read_state(path: Path) -> tuple[Progress, Files]:
    """What `write_state` wrote. Raises ValueError if the file is damaged, or if it is another version's."""
    try:
        state = json.loads((path / STATE).read_text())
        if state.pop("checksum") != _checksum_of(state):
            raise ValueError("it has another checksum than when it was written")
        progress, files = Progress(**state["progress"]), state["files"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{STATE} cannot be read ({error!r})") from error
    hints = get_type_hints(Progress)
    wrong = [name for name, value in vars(progress).items() if not conforms(value, hints[name])]
    if wrong or progress.step < 1:
        raise ValueError(f"{STATE} holds no progress of a run: {', '.join(wrong) or 'step'} is wrong")
    if not files or not conforms(files, Files) or any(len(about) != 2 for about in files.values()):
        raise ValueError(f"{STATE} names no files")
    return progress, files


def damage(path: Path) -> str:
    """What is wrong with a checkpoint that a run would need to go on, or an empty string."""
    try:
        _, files = read_state(path)
        needed = {name: about for name, about in files.items() if Path(name).parts[0] != EXPORT}
        if reason := _damaged(path, needed.items()):
            return reason
        read_metadata(path / SHARDS)
        read_rollouts(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def export_damage(path: Path) -> str:
    """What is wrong with the export of a checkpoint that a run can go on from, or an empty string."""
    _, files = read_state(path)
    exported = [(name, about) for name, about in files.items() if Path(name).parts[0] == EXPORT]
    return _damaged(path, exported) if exported else f"{EXPORT} is missing"


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from, and a line about each damaged one, which is set aside.

    A damaged export alone is removed: a run goes on without it, and `Checkpointer.load` makes it anew.
    """
    complaints: list[str] = []
    for path in reversed(committed(folder)):
        if not (reason := damage(path)):
            if reason := export_damage(path):
                remove(path / EXPORT)
                complaints.append(f"the export of {path} is damaged: {reason}; it is made anew")
            return path, complaints
        aside = path.with_name(f"damaged_{path.name}")
        remove(aside)
        path.rename(aside)
        complaints.append(f"checkpoint {path} is damaged: {reason}; it is {aside.name} now")
    return None, complaints


def checksum(file: Path) -> int:
    crc = 0
    with file.open("rb") as f:
        while chunk := f.read(1 << 24):
            crc = zlib.crc32(chunk, crc)
    return crc


def _checksum_of(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def _damaged(path: Path, files: Iterable[tuple[str, list[int]]]) -> str:
    for name, (size, crc) in files:
        file = path / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            return f"{STATE} names {name}, which is no file of a checkpoint"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if checksum(file) != crc:
            return f"{name} has another checksum than when it was written"
    return ""
