"""Checkpoints: sharded, written beside training, committed in one rename, and checked before they are trusted."""

import json
import os
import pickle
import random
import shutil
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from fastgrpo.policy.learner import Learner
from fastgrpo.policy.sharding import full_weights
from fastgrpo.ranks import Ranks

SHARDS, EXPORT, STATE, ROLLOUTS = "shards", "hf", "state.json", "rollouts.pkl"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what to do."""


@dataclass
class _Write:
    """A checkpoint that is being written: its shards by every rank, the export and the state by the first."""

    partial: Path
    shards: Future[Any]
    export: threading.Thread | None = None
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.shards.done() and (self.export is None or not self.export.is_alive())

    def result(self) -> BaseException | None:
        """Waits for it; what went wrong, if anything did."""
        if self.export is not None:
            self.export.join()
        return self.shards.exception() or self.error


class Checkpointer:
    """Writes ``folder/step_000020/{shards, hf, rollouts.pkl, state.json}``; at most one write is under way.

    ``shards`` is torch's distributed checkpoint, which any number of ranks can load; ``hf`` loads with
    ``from_pretrained``; ``state.json`` holds the trainer's progress and the size and checksum of every file, and is
    written last: a folder without it was never finished.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep_last: int, export_dtype: torch.dtype, tokenizer: Any) -> None:
        self.folder, self.ranks, self.keep_last = folder, ranks, keep_last
        self.export_dtype, self.tokenizer = export_dtype, tokenizer
        # The write's own collectives must not mix with training's.
        self.group = dist.new_group(backend="gloo", timeout=ranks.timeout)
        self.under_way: _Write | None = None
        if ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step_*"):
                shutil.rmtree(leftover)
        ranks.barrier()

    def save(self, step: int, learner: Learner, progress: dict[str, Any], rollouts: dict[str, Any]) -> None:
        """Copies the state and returns; the files are written while training goes on. All ranks take part.

        ``rollouts`` is the first rank's: prompts and responses that no step has taken yet.
        """
        self.finish()
        partial = self.folder / f".step_{step:06d}"
        error: Exception | None = None
        try:
            copies = 2 if learner.reference else 1
            require_space(self.folder, learner.policy.model.num_parameters(), self.export_dtype, copies)
            _save_random_state(partial, self.ranks.rank)
            if self.ranks.is_first:
                (partial / ROLLOUTS).write_bytes(pickle.dumps(rollouts))
        except (ValueError, OSError) as caught:
            error = caught
        self._agree(partial, error)
        shards: Any = dcp.async_save(_state_of(learner), checkpoint_id=partial / SHARDS, process_group=self.group)
        weights = {n: _to_cpu(w, self.export_dtype, self.ranks.is_first) for n, w in full_weights(learner.policy)}
        self.under_way = _Write(partial, shards)
        if self.ranks.is_first:
            export = threading.Thread(target=self._write_export, args=(self.under_way, learner, weights, progress))
            self.under_way.export = export
            export.start()

    def commit_if_written(self) -> None:
        """Commits the write under way once all ranks are through with it, without waiting for it."""
        if self.under_way is not None and not self.ranks.any(not self.under_way.is_done):
            self.finish()

    def finish(self) -> None:
        """Waits for the write under way and commits it. Raises CheckpointError if it failed, on all ranks."""
        if self.under_way is None:
            return
        write, self.under_way = self.under_way, None
        partial = write.partial
        self._agree(partial, write.result())
        if self.ranks.is_first:
            os.replace(partial, self.folder / partial.name[1:])
            for old in committed(self.folder)[: -self.keep_last]:
                shutil.rmtree(old)
        self.ranks.barrier()

    def _agree(self, partial: Path, error: BaseException | None) -> None:
        """Raises CheckpointError on every rank if one of them has an error: alone it would leave the others waiting."""
        reasons = self.ranks.gather([f"rank {self.ranks.rank}: {error}"] if error else [])
        if reasons:
            raise CheckpointError(
                f"checkpoint {partial.name[1:]} in {self.folder} was not written ({reasons[0]}); those before it "
                f"are whole, go on with --resume"
            ) from error

    def load(self, path: Path, learner: Learner) -> tuple[dict[str, Any], dict[str, Any]]:
        """Overwrites weights and optimizer; returns the progress and the rollouts that were saved with them. All ranks
        take part."""
        state = _state_of(learner)
        dcp.load(state, checkpoint_id=path / SHARDS, process_group=self.group)
        set_state_dict(
            learner.policy,
            learner.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        if learner.reference is not None:
            set_model_state_dict(learner.reference.policy, state["reference"])
        _load_random_state(path, self.ranks.rank)
        rollouts = pickle.loads((path / ROLLOUTS).read_bytes())
        return json.loads((path / STATE).read_text())["progress"], rollouts

    def _write_export(
        self, write: "_Write", learner: Learner, weights: dict[str, Tensor], progress: dict[str, Any]
    ) -> None:
        partial = write.partial
        try:
            export = partial / EXPORT
            export.mkdir(parents=True, exist_ok=True)
            save_torch_state_dict(weights, export, metadata={"format": "pt"})
            config = type(learner.policy.model.config).from_dict(learner.policy.model.config.to_dict())
            config.dtype = self.export_dtype
            config.architectures = [type(learner.policy.model).__name__]
            config.save_pretrained(export)
            if learner.policy.model.generation_config is not None:
                learner.policy.model.generation_config.save_pretrained(export)
            self.tokenizer.save_pretrained(export)
            write.shards.result()
            files = {str(f.relative_to(partial)): [f.stat().st_size, checksum(f)] for f in _files(partial)}
            state = {"progress": progress, "files": files}
            (partial / STATE).write_text(json.dumps(state, indent=1))
        except BaseException as error:  # told to every rank by finish()
            write.error = error


def _state_of(learner: Learner) -> dict[str, Any]:
    """What a run needs to go on, sharded as it is; the reference too, which may have been reset."""
    model, optimizer = get_state_dict(learner.policy, learner.optimizer)
    if learner.reference is None:
        return {"model": model, "optimizer": optimizer}
    return {"model": model, "optimizer": optimizer, "reference": get_model_state_dict(learner.reference.policy)}


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


def _files(folder: Path) -> Iterator[Path]:
    return (f for f in sorted(folder.rglob("*")) if f.is_file())


def _to_cpu(weight: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """A copy that training does not change; ranks that do not write keep nothing of it."""
    return weight.detach().to("cpu", dtype, copy=True) if keep else torch.empty(0)


def _save_random_state(partial: Path, rank: int) -> None:
    """No draw of ours uses global generators; a model's or a recipe's code may."""
    partial.mkdir(parents=True, exist_ok=True)
    state = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, partial / f"random_state_{rank}.pt")


def _load_random_state(path: Path, rank: int) -> None:
    file = path / f"random_state_{rank}.pt"
    if file.exists():  # a rank that the saved run did not have keeps its own
        state = torch.load(file, weights_only=False)
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
