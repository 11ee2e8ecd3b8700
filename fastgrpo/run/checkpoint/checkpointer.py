"""Writes and loads checkpoints: sharded, written beside training, committed in one rename."""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from fastgrpo.json_lines import to_disk
from fastgrpo.policy.learner import Learner
from fastgrpo.ranks import Ranks
from fastgrpo.run.checkpoint.disk import folder_to_disk, remove, require_space
from fastgrpo.run.checkpoint.export import Exporter
from fastgrpo.run.checkpoint.in_flight import read_rollouts, save_rollouts
from fastgrpo.run.checkpoint.integrity import EXPORT, SHARDS, committed, read_state, write_state
from fastgrpo.run.checkpoint.random_state import load_random_state, save_random_state
from fastgrpo.run.checkpoint.reload import some
from fastgrpo.run.checkpoint.shards import load_shards, reason_of
from fastgrpo.trainer import Progress

COMPARED = ".compared"
"""A file beside the checkpoints once an export was compared."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what to do."""


@dataclass
class _Write:
    """A checkpoint that is being written: its shards by every rank, the export and the state by the first."""

    partial: Path
    shards: Future[Any]
    weights: dict[str, Tensor] | None = None  # of the export, for as long as it is to be compared with them
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
    """Writes ``folder/step_000020/{shards, hf, rollouts.codec, random_state_0.codec, state.json}``; at most one write
    is under way.

    ``shards`` is torch's distributed checkpoint, which any number of ranks can load; ``hf`` loads with
    ``from_pretrained``; ``state.json`` holds the trainer's progress and the size and checksum of every file, and is
    written last: a folder without it was never finished. The first export of all is compared with what was trained,
    beside training.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, keep_last: int, exporter: Exporter, say: Callable[[str], None], run: str
    ) -> None:
        self.folder, self.ranks, self.keep_last = folder, ranks, keep_last
        self.exporter, self.say, self.run = exporter, say, run
        # The write's own collectives must not mix with training's.
        self.group = dist.new_group(backend="gloo", timeout=ranks.timeout)
        self.under_way: _Write | None = None
        self.comparison: Future[str] | None = None
        ranks.together(self._begin)

    def _begin(self) -> None:
        if not self.ranks.is_first:
            return
        try:
            if self.folder.is_symlink() and not self.folder.exists():
                raise OSError(f"it is a link to {self.folder.readlink()}, which is not there")
            self.folder.mkdir(parents=True, exist_ok=True)
            to_disk(self.folder.parent)
            for leftover in self.folder.glob(".step_*"):
                remove(leftover)
        except OSError as error:
            raise ValueError(f"checkpoints cannot be written to {self.folder}: {error}") from error

    def save(self, step: int, learner: Learner, progress: dict[str, Any], rollouts: dict[str, Any]) -> None:
        """Copies the state and returns; the files are written while training goes on. All ranks take part.

        ``rollouts`` is the first rank's: prompts and responses that no step has taken yet.
        """
        self.finish()
        partial = self.folder / f".step_{step:06d}"
        error: Exception | None = None
        try:
            copies = 2 if learner.reference else 1
            require_space(self.folder, learner.policy.model.num_parameters(), self.exporter.dtype, copies)
            save_random_state(partial, self.ranks.rank)
            if self.ranks.is_first:
                save_rollouts(partial, rollouts)
        except (ValueError, OSError) as caught:
            error = caught
        self._agree(partial, error)
        shards: Any = dcp.async_save(_state_of(learner), checkpoint_id=partial / SHARDS, process_group=self.group)
        weights = self.exporter.gather(learner.policy, keep=self.ranks.is_first)
        self.under_way = _Write(partial, shards)
        if self.ranks.is_first:
            self.under_way.weights = None if (self.folder / COMPARED).exists() else weights
            export = threading.Thread(target=self._write_files, args=(self.under_way, weights, progress))
            self.under_way.export = export
            export.start()

    def commit_if_written(self) -> None:
        """Commits the write under way once all ranks are through with it, without waiting for it."""
        if self.under_way is not None and not self.ranks.any(not self.under_way.is_done):
            self.finish()

    def finish(self, compare: bool = True) -> None:
        """Waits for the write under way and commits it. The first export is compared from then on, unless ``compare``
        is false. Raises CheckpointError if the write failed, on all ranks."""
        self.end_comparison()
        if self.under_way is None:
            return
        write, self.under_way = self.under_way, None
        partial = write.partial
        self._agree(partial, write.result())
        if self.ranks.is_first:
            path = self.folder / partial.name[1:]
            os.replace(partial, path)
            to_disk(self.folder)
            for old in committed(self.folder)[: -self.keep_last]:
                remove(old)
            if compare and write.weights is not None:
                self.comparison = ThreadPoolExecutor(1, "comparison").submit(self._compared, path, write.weights)
        self.ranks.barrier()

    def end_comparison(self) -> None:
        """Waits for the comparison under way, if there is one, and says what it found."""
        if self.comparison is not None and (found := self.comparison.result()):
            self.say(found)
        self.comparison = None

    def _agree(self, partial: Path, error: BaseException | None) -> None:
        """Raises CheckpointError on every rank if one of them has an error: alone it would leave the others waiting."""
        reasons = self.ranks.gather([f"rank {self.ranks.rank}: {reason_of(error)}"] if error else [])
        if reasons:
            raise CheckpointError(
                f"checkpoint {partial.name[1:]} in {self.folder} was not written ({reasons[0]})"
            ) from error

    def load(self, path: Path, learner: Learner) -> tuple[Progress, dict[str, Any]]:
        """Overwrites weights and optimizer; returns the progress and the rollouts that were saved with them. All ranks
        take part. Raises Refused if the files do not hold a state of this run."""
        state = _state_of(learner)
        self.ranks.together(lambda: load_shards(state, path / SHARDS, self.group))
        set_state_dict(
            learner.policy,
            learner.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        if learner.reference is not None:
            set_model_state_dict(learner.reference.policy, state["reference"])
        self.ranks.together(lambda: load_random_state(path, self.ranks.rank))
        progress, rollouts = self.ranks.together(lambda: (read_state(path)[0], read_rollouts(path)))
        if self.ranks.any(self.ranks.is_first and not (path / EXPORT).is_dir()):
            self._export_again(path, learner, progress)
        return progress, rollouts

    def _export_again(self, path: Path, learner: Learner, progress: Progress) -> None:
        """Writes the export of a checkpoint whose own was damaged, which the run does not need. All ranks take part."""
        weights = self.exporter.gather(learner.policy, keep=self.ranks.is_first)
        if not self.ranks.is_first:
            return
        partial = path / f".{EXPORT}"
        try:
            remove(partial)
            self.exporter.write(partial, weights)
            folder_to_disk(partial)
            partial.rename(path / EXPORT)
            to_disk(path)
            write_state(path, asdict(progress), self.run)
        except Exception as error:  # of safetensors too, which has no base class
            remove(partial)
            self.say(f"warning: the export of {path} could not be written: {reason_of(error)}")

    def _write_files(self, write: "_Write", weights: dict[str, Tensor], progress: dict[str, Any]) -> None:
        partial = write.partial
        try:
            self.exporter.write(partial / EXPORT, weights)
            write.shards.result()
            write_state(partial, progress, self.run)
            folder_to_disk(partial)
        except BaseException as error:  # told to every rank by finish()
            write.error = error

    def _compared(self, path: Path, weights: dict[str, Tensor]) -> str:
        """A line if the export is not what was trained, or "". It ends nothing: the shards are whole."""
        try:
            differences = self.exporter.differences(path / EXPORT, weights)
        except Exception as error:  # of code that loads what it was not made for
            differences = [f"it cannot be loaded ({type(error).__name__}: {error})"]
        with contextlib.suppress(OSError):  # a full disk: the next one is compared too
            (self.folder / COMPARED).touch()
        return f"warning: the export of {path.name} is not what was trained: {some(differences)}" if differences else ""


def _state_of(learner: Learner) -> dict[str, Any]:
    """What a run needs to go on, sharded as it is; the reference too, which may have been reset."""
    model, optimizer = get_state_dict(learner.policy, learner.optimizer)
    if learner.reference is None:
        return {"model": model, "optimizer": optimizer}
    return {"model": model, "optimizer": optimizer, "reference": get_model_state_dict(learner.reference.policy)}
