"""The figures of a run, as lines of JSON that survive a kill and continue without a gap or a repeat."""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only file of records that carry a ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Writes whole lines in one go, to the disk; a number that is not finite becomes null, which JSON can hold."""
        lines = "".join(json.dumps(_finite(r), ensure_ascii=False) + "\n" for r in records)
        with self.path.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All whole records."""
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The whole records, one at a time; a last line that a kill tore is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number} is not JSON: {error}") from error

    def keep_until(self, step: int) -> None:
        """Drops what was written after a step's checkpoint, and a torn last line."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
                end += len(line)
        os.truncate(self.path, end)  # one call: a kill leaves the old file or the new one


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces the file in one rename: a reader sees the old or the new one, and so does who comes after a loss of
    power."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    to_disk(partial)
    partial.replace(path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Returns when the content of a file, or the names in a folder, are on the disk and not only in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise  # some network file systems keep names in another way than files, and refuse this for folders
    finally:
        os.close(handle)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
