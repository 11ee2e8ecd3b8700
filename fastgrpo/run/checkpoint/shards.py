"""torch's distributed checkpoint, read without executing anything that its files may hold."""

import enum
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_METADATA = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
    (_METADATA, "BytesStorageMetadata"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
"""What the metadata of a distributed checkpoint is made of, besides dtypes: none of it does anything when made."""


def load_shards(state: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> None:
    """Overwrites the tensors of ``state`` with those of the folder. All ranks take part.

    Raises ValueError, on all ranks, if the files do not hold them.
    """
    try:
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner(), process_group=group)
    except CheckpointException as error:
        raise ValueError(
            f"{folder} cannot be loaded ({reason_of(error)}): without {folder.parent}, --resume takes the checkpoint "
            f"before"
        ) from error


def read_metadata(folder: Path) -> Metadata:
    """What the shards hold and where. Raises ValueError if the file is not what torch writes."""
    try:
        with (folder / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"it holds a {type(metadata).__name__}")
        names = {info.relative_path for info in metadata.storage_data.values()}
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names a file of another folder, {outside[0]}")
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"{folder / '.metadata'} is no metadata of shards: {error}") from error
    return metadata


def reason_of(error: BaseException) -> str:
    """What went wrong, in a line: torch's own words are a traceback."""
    if isinstance(error, CheckpointException):
        error = next(reason for reason, _ in error.failures.values())
    line = (str(error).splitlines() or [""])[0]
    if "inline_container" in line:  # torch's writer, which hides what the system said
        return "a file could not be written whole: is the disk full, or a file longer than `ulimit -f` allows?"
    return f"{type(error).__name__}: {line}"


_InPython: Any = vars(pickle)["_Unpickler"]  # the one whose steps can be changed


class _Unpickler(_InPython):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) in _KNOWN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no such metadata needs")

    def load_build(self) -> None:
        """Gives an object its attributes. A class, a function or a member of an enum would be changed for the whole
        process."""
        if callable(self.stack[-2]) or isinstance(self.stack[-2], enum.Enum):
            raise pickle.UnpicklingError(f"it changes {self.stack[-2]}")
        super().load_build()

    dispatch: ClassVar = {**_InPython.dispatch, pickle.BUILD[0]: load_build}


class _Reader(dcp.FileSystemReader):
    """torch's own unpickles whatever the metadata names."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(dcp.DefaultLoadPlanner):
    """torch's own unpickles whatever stands in the place of a number, such as a learning rate."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        content = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), content)
        content.seek(0)
        super().load_bytes(read_item, content)
