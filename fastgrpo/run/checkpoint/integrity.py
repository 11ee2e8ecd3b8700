"""Whether what a checkpoint holds is what was written, and which checkpoint a run can go on from."""

import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

from fastgrpo.codec.conforms import conforms
from fastgrpo.json_lines import replace_text
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


def write_state(path: Path, progress: dict[str, Any], run: str) -> None:
    """Writes down whose the checkpoint is, how far the run is and what there is: the last file of one."""
    files = {str(f.relative_to(path)): [f.stat().st_size, checksum(f)] for f in files_of(path) if f != path / STATE}
    state = {"run": run, "progress": progress, "files": files}
    replace_text(path / STATE, json.dumps({**state, "checksum": _checksum_of(state)}, indent=1))


def read_state(path: Path, run: str = "") -> tuple[Progress, Files]:
    """What `write_state` wrote. Raises ValueError if the file is damaged, or if it is another version's, or not of the
    run that is named."""
    try:
        state = json.loads((path / STATE).read_text())
        if state.pop("checksum") != _checksum_of(state):
            raise ValueError("it has another checksum than when it was written")
        progress, files, of_run = Progress(**state["progress"]), state["files"], state["run"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{STATE} cannot be read ({error!r})") from error
    hints = get_type_hints(Progress)
    wrong = [name for name, value in vars(progress).items() if not conforms(value, hints[name])]
    if wrong or progress.step < 1:
        raise ValueError(f"{STATE} holds no progress of a run: {', '.join(wrong) or 'step'} is wrong")
    if not files or not conforms(files, Files) or any(len(about) != 2 for about in files.values()):
        raise ValueError(f"{STATE} names no files")
    if outside := [n for n in files if not Path(n).parts or ".." in Path(n).parts or Path(n).is_absolute()]:
        raise ValueError(f"{STATE} names {outside[0]!r}, which is no file of a checkpoint")
    if run and of_run != run:
        raise ValueError(f"{STATE} is of another run, with other settings")
    if f"step_{progress.step:06d}" != path.name.lstrip("."):
        raise ValueError(f"{STATE} is of step {progress.step}")
    return progress, files


def damage(path: Path, run: str = "") -> str:
    """What is wrong with a checkpoint that a run would need to go on, or an empty string."""
    try:
        _, files = read_state(path, run)
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


def newest_intact(folder: Path, run: str = "") -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from, and a line about each damaged one, which is set aside.

    A damaged export alone is removed: a run goes on without it, and `Checkpointer.load` makes it anew. Raises
    ValueError for a link that leads nowhere: a disk may not be mounted.
    """
    complaints: list[str] = []
    if lost := [p for p in (folder, *folder.glob("step_*")) if p.is_symlink() and not p.exists()]:
        raise ValueError(
            f"{lost[0]} is a link to {lost[0].readlink()}, which is not there: mount it, or remove the link"
        )
    for path in reversed(committed(folder)):
        if not (reason := damage(path, run)):
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
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if checksum(file) != crc:
            return f"{name} has another checksum than when it was written"
    return ""
