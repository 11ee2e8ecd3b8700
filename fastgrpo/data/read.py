"""A source, as a user names it, -> files -> rows. What a row means is not known here."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download

from fastgrpo.data.parquet import Choose, parquet_rows

FORMATS = (".parquet", ".jsonl", ".json")
_NEEDED = "a .parquet, .jsonl or .json file, a folder of them, or a hub data set owner/name or owner/name:path/in/it"
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<path>.+))?")
_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}


class Row(NamedTuple):
    file: Path
    number: int  # 0-based within the file
    line: int | None  # 1-based, of a .jsonl file
    values: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.file}, row {self.number}" + (f" (line {self.line})" if self.line else "")


def find_files(source: str) -> list[Path]:
    """The data files that `source` names, in the order in which they are read.

    A folder gives its own files, not those of its subfolders. A name that is no local path, has no data file's
    ending and has the form owner/name is fetched from the hub. Raises ValueError where there is nothing to read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [_known(path)]
    if source and path.is_dir():  # Path("") is the working folder
        files = sorted(p for p in path.iterdir() if p.suffix in FORMATS and p.is_file())
        if not files:
            raise ValueError(f"The folder {path} holds no {', '.join(FORMATS)} file. Needed: {_NEEDED}.")
        return files
    if path.exists() and source:
        raise ValueError(f"{path} is neither a file nor a folder, so it cannot be read twice. Needed: {_NEEDED}.")
    match = _HUB_ID.fullmatch(source)
    if match and Path(match["id"]).suffix not in FORMATS:
        return _fetch(match["id"], match["path"] or "")
    raise ValueError(f"No data at {source!r}: {path.absolute()} does not exist. Needed: {_NEEDED}.")


def read_rows(file: Path, choose: Choose | None = None) -> Iterator[Row]:
    """Every row of one file. Of a parquet file only the columns are read that ``choose`` takes of their names.

    Raises ValueError naming the file, and the row where there is one; and what ``choose`` raises.
    """
    suffix = _known(file).suffix
    if suffix == ".parquet":
        return (Row(file, n, None, values) for n, values in enumerate(parquet_rows(file, choose)))
    return _jsonl_rows(file) if suffix == ".jsonl" else _json_rows(file)


def _known(file: Path) -> Path:
    if file.suffix not in FORMATS:
        raise ValueError(f"{file} ends in {file.suffix or 'nothing'}, which is not read. Needed: {_NEEDED}.")
    return file


def _fetch(hub_id: str, path: str) -> list[Path]:
    """Downloads the data files of a hub data set, or those at `path` in it, unless they are in the hub's cache."""
    patterns = [path, *(f"{path.rstrip('/')}/*{f}" for f in FORMATS)] if path else [f"*{f}" for f in FORMATS]
    try:
        root = Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the client's errors share no base class, and the user needs the same advice for all
        raise ValueError(
            f"{hub_id!r} is no local path, and the hub data set of that name could not be fetched "
            f"({type(error).__name__}: {error}). Check the name and the connection (a private or gated data set needs "
            "`hf auth login`), or download the data elsewhere and give the local file or folder instead."
        ) from error
    target = root / path
    if target.is_file():
        return [_known(target)]
    files = _one_format(sorted(p for p in target.rglob("*") if p.suffix in FORMATS))
    if not files:
        raise ValueError(f"The hub data set {hub_id} has no {', '.join(FORMATS)} file at {path or 'any path'!r}.")
    _require_one_split(hub_id, [str(f.relative_to(root)) for f in files])
    return files


def _one_format(files: list[Path]) -> list[Path]:
    """The parquet files if there are any: beside them, .json files on the hub are descriptions."""
    for known in FORMATS:
        if chosen := [f for f in files if f.suffix == known]:
            return chosen
    return []


def _require_one_split(hub_id: str, names: list[str]) -> None:
    """Refuses to mix training and test problems."""
    splits = {word for name in names for word in re.split(r"[^a-z]+", name.lower())} & _SPLITS
    if len(splits) > 1:
        listing = "\n  ".join(names[:20]) + ("\n  ..." if len(names) > 20 else "")
        raise ValueError(
            f"The hub data set {hub_id} holds several splits ({', '.join(sorted(splits))}). Name a file or folder of "
            f"it, as in {hub_id}:{names[0]}. It has:\n  {listing}"
        )


def _jsonl_rows(file: Path) -> Iterator[Row]:
    index = 0
    with file.open("rb") as lines:  # bytes: a text file would also count other line ends than \n
        for line, raw in enumerate(lines, start=1):
            if raw.strip():
                yield _object(Row(file, index, line, _parse_json(f"{file}, row {index} (line {line})", raw)))
                index += 1


def _json_rows(file: Path) -> Iterator[Row]:
    try:
        rows = _parse_json(str(file), file.read_bytes())
    except ValueError as error:
        if not isinstance(error.__cause__, json.JSONDecodeError) or error.__cause__.msg != "Extra data":
            raise
        yield from _jsonl_rows(file)  # one row a line under this name, as is common on the hub
        return
    if not isinstance(rows, list):
        raise ValueError(
            f"{file} must hold a list of rows, got a {type(rows).__name__}: take the list out of it. One row a line is "
            f".jsonl."
        )
    for index, values in enumerate(rows):
        yield _object(Row(file, index, None, values))


def _parse_json(where: str, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, brackets without end
        raise ValueError(f"{where} is not valid JSON: {error}") from error


def _object(row: Row) -> Row:
    """The row; one that is a list of messages, as those of Open-Reasoner-Zero are, as its column ``conversations``."""
    if isinstance(row.values, list) and row.values and all(isinstance(turn, dict) for turn in row.values):
        return row._replace(values={"conversations": row.values})
    if not isinstance(row.values, dict):
        raise ValueError(f"{row.where} must be an object with named columns, got a {type(row.values).__name__}.")
    return row
