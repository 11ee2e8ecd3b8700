"""The states of the global random generators, which no draw of ours uses; a model's or a recipe's code may."""

import random
from pathlib import Path

import numpy as np
import torch

from fastgrpo.codec import decode, encode


def save_random_state(partial: Path, rank: int) -> None:
    """Writes the states of this rank's process into a checkpoint that is being written."""
    partial.mkdir(parents=True, exist_ok=True)
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": (kind, keys, *rest),
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state().numpy() if torch.cuda.is_available() else None,
    }
    _file(partial, rank).write_bytes(encode(state))


def load_random_state(path: Path, rank: int) -> None:
    """Puts this process into the states that were saved; a rank that the saved run did not have keeps its own.

    Raises ValueError for a file that holds no such states.
    """
    file = _file(path, rank)
    if not file.exists():
        return
    try:
        state = decode(file.read_bytes())
        torch.set_rng_state(torch.from_numpy(state["torch"]))
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.from_numpy(state["cuda"]))
    except (ValueError, TypeError, LookupError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{file} holds no states of random generators: {error}") from error


def _file(folder: Path, rank: int) -> Path:
    return folder / f"random_state_{rank}.codec"
