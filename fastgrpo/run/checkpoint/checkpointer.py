"""Writes and loads checkpoints: sharded, written beside training, committed in one rename."""

import json
import os
import pickle
import shutil
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
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
from fastgrpo.run.checkpoint.export import write_export
from fastgrpo.run.checkpoint.integrity import STATE, checksum, committed, files_of
from fastgrpo.run.checkpoint.random_state import load_random_state, save_random_state
from fastgrpo.run.checkpoint.space import require_space

SHARDS, EXPORT, ROLLOUTS = "shards", "hf", "rollouts.pkl"


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
            save_random_state(partial, self.ranks.rank)
            if self.ranks.is_first:
                (partial / ROLLOUTS).write_bytes(pickle.dumps(rollouts))
        except (ValueError, OSError) as caught:
            error = caught
        self._agree(partial, error)
        shards: Any = dcp.async_save(_state_of(learner), checkpoint_id=partial / SHARDS, process_group=self.group)
        weights = {n: _to_cpu(w, self.export_dtype, self.ranks.is_first) for n, w in full_weights(learner.policy)}
        self.under_way = _Write(partial, shards)
        if self.ranks.is_first:
            export = threading.Thread(target=self._write_files, args=(self.under_way, learner, weights, progress))
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
        load_random_state(path, self.ranks.rank)
        rollouts = pickle.loads((path / ROLLOUTS).read_bytes())
        return json.loads((path / STATE).read_text())["progress"], rollouts

    def _write_files(
        self, write: "_Write", learner: Learner, weights: dict[str, Tensor], progress: dict[str, Any]
    ) -> None:
        partial = write.partial
        try:
            write_export(partial / EXPORT, weights, learner.policy.model, self.tokenizer, self.export_dtype)
            write.shards.result()
            files = {str(f.relative_to(partial)): [f.stat().st_size, checksum(f)] for f in files_of(partial)}
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


def _to_cpu(weight: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """A copy that training does not change; ranks that do not write keep nothing of it."""
    return weight.detach().to("cpu", dtype, copy=True) if keep else torch.empty(0)
