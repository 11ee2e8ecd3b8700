"""The states of the global random generators, which no draw of ours uses; a model's or a recipe's code may."""

import random
from pathlib import Path

import numpy as np
import torch


def save_random_state(partial: Path, rank: int) -> None:
    """Writes the states of this rank's process into a checkpoint that is being written."""
    partial.mkdir(parents=True, exist_ok=True)
    state = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, partial / f"random_state_{rank}.pt")


def load_random_state(path: Path, rank: int) -> None:
    file = path / f"random_state_{rank}.pt"
    if file.exists():  # a rank that the saved run did not have keeps its own
        state = torch.load(file, weights_only=False)
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
