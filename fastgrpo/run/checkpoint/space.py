"""The disk that a checkpoint takes."""

import shutil
from pathlib import Path

import torch


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
