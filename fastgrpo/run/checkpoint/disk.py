"""What a checkpoint does with the disk below it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from fastgrpo.json_lines import to_disk


def folder_to_disk(folder: Path) -> None:
    """Returns when a loss of power cannot take a file of this folder, or of those in it, any more."""
    for file in files_of(folder):
        to_disk(file)
    for below in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        to_disk(below)


def files_of(folder: Path) -> Iterator[Path]:
    return (f for f in sorted(folder.rglob("*")) if f.is_file())


def remove(path: Path) -> None:
    """Removes a file, a folder with all that is in it, or a link, whose target stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def require_space(folder: Path, num_parameters: int, export_dtype: torch.dtype, copies: int = 1) -> None:
    """Raises ValueError if a checkpoint would not fit on the disk that holds the folder. ``copies`` is 2 with a
    reference."""
    needed = checkpoint_bytes(num_parameters, export_dtype, copies)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 2**30:.2f} GiB free and a checkpoint needs {needed / 2**30:.2f} GiB: make room"
        )


def checkpoint_bytes(num_parameters: int, export_dtype: torch.dtype, copies: int = 1) -> int:
    """Disk that one checkpoint takes: float32 weights, as often as they are kept, two AdamW moments, the export, and a
    tenth to spare."""
    return int(num_parameters * (8 + 4 * copies + export_dtype.itemsize) * 1.1)
