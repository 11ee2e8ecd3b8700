"""The figures of a run, as lines of JSON that survive a kill and continue without a gap or a repeat."""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MOST_STEPS = 10**12


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
        """The whole records, one at a time. Raises ValueError, with the line, for what is none."""
        return (record for record, _ in self._whole_lines())

    def keep_until(self, step: int) -> None:
        """Drops what was written after a step's checkpoint, and a torn last line."""
        end = 0
        for record, length in self._whole_lines():
            if record["step"] > step:
                break
            end += length
        if self.path.exists():
            os.truncate(self.path, end)  # one call: a kill leaves the old file or the new one

    def _whole_lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The records with their lengths in bytes; a last line that a kill tore is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield record_of(line, f"{self.path}, line {number}"), len(line)


def record_of(line: bytes, where: str) -> dict[str, Any]:
    """The record that a line holds. Raises ValueError, with where it is, if it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict) or type(record.get("step")) is not int or abs(record["step"]) > MOST_STEPS:
        raise ValueError(f"{where} is no record of a step: {line[:60].decode(errors='replace').strip()}")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds. Raises ValueError, with the file's name, if there is none."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} cannot be read (it holds a {type(found).__name__} and no object)")
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes an object in the manner of `replace_text`; a number that is not finite becomes null."""
    replace_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replaces the file in one rename: a reader sees the old or the new one, and so does who comes after a loss of
    power."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
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
