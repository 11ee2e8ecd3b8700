"""Whether what a checkpoint holds is what was written, and which checkpoint a run can go on from."""

import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

STATE = "state.json"


def committed(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step_*") if p.is_dir())


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, or an empty string."""
    try:
        state = json.loads((path / STATE).read_text())
        files = state["files"]
        if not files or state["progress"]["step"] < 1:
            return f"{STATE} names no files"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STATE} cannot be read ({error!r})"
    for name, (size, crc) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if checksum(file) != crc:
            return f"{name} has another checksum than when it was written"
    return ""


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from, and a line about each damaged one, which is set aside."""
    complaints: list[str] = []
    for path in reversed(committed(folder)):
        if not (reason := damage(path)):
            return path, complaints
        aside = path.with_name(f"damaged_{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        complaints.append(f"checkpoint {path} is damaged: {reason}; it is {aside.name} now")
    return None, complaints


def checksum(file: Path) -> int:
    crc = 0
    with file.open("rb") as f:
        while chunk := f.read(1 << 24):
            crc = zlib.crc32(chunk, crc)
    return crc


def files_of(folder: Path) -> Iterator[Path]:
    return (f for f in sorted(folder.rglob("*")) if f.is_file())
