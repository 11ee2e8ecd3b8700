"""A parquet file -> rows, by bytes: what a few kilobytes unpack to may be more than a machine has."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Choose = Callable[[Collection[str]], Collection[str]]

ROWS_AT_ONCE = 1024
MAX_ROW_BYTES = 1 << 22  # of the columns that are read; a problem of 3 MB is one that people have
MAX_WHOLE_ROW_BYTES = 1 << 27  # of a row with all its columns, the tests of a program among them
MAX_EXPANSION = 250  # bytes read for each byte of the file: text is packed to a tenth, repeated text to a hundredth
MIN_ALLOWED_BYTES = 1 << 28
_BYTES_PER_VALUE = 64  # of its object in Python, beside a text's characters


class _TooLarge(ValueError):
    """What is bounded here, in words."""


def parquet_rows(file: Path, choose: Choose | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, with the columns that ``choose`` takes of their names, or with all.

    No more of the file is in memory than a row group's packed bytes, one page of each column, and 1024 rows or, where
    these are large, one. Texts stay in the dictionaries that the file has them in until their row's turn. Raises
    ValueError, naming the file, for one that is broken, a row that is too large, and a file that unpacks to too much.
    """
    done = 0
    try:
        with pq.ParquetFile(file) as plain:
            columns = list(choose(plain.schema_arrow.names)) if choose else plain.schema_arrow.names
            leaves = [n for n in range(len(plain.schema)) if _is_in(plain.schema.column(n).path, columns)]
            paths = [plain.schema.column(n).path for n in leaves]
            texts = [p for n, p in zip(leaves, paths, strict=True) if _is_text(plain.schema.column(n))]
        allowed = max(MIN_ALLOWED_BYTES, MAX_EXPANSION * file.stat().st_size)
        largest = MAX_ROW_BYTES if choose else MAX_WHOLE_ROW_BYTES
        read_bytes = 0
        with pq.ParquetFile(file, read_dictionary=texts) as parquet:
            for group in range(parquet.num_row_groups):
                _check_group(parquet.metadata.row_group(group), leaves, largest, allowed)
                for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=paths):
                    for part, size in _parts(batch, largest):
                        read_bytes += size
                        if size > largest and len(part) == 1:
                            raise _TooLarge(f"row {done} takes {_mib(size)} unpacked, more than {_mib(largest)}")
                        if read_bytes > allowed:
                            raise _TooLarge(f"its first {done} rows take over {_mib(allowed)} unpacked")
                        for values in _as_written(part).to_pylist():
                            yield values
                            done += 1
    except _TooLarge as error:
        raise ValueError(
            f"{file}, of {file.stat().st_size:,} bytes: {error}, which no data set of problems does. Write it anew "
            f"without what is so long"
        ) from None
    except (pa.ArrowException, OSError, OverflowError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as parquet (after {done} rows): {error}") from error


def _is_in(path: str, columns: Collection[str]) -> bool:
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def _is_text(column: Any) -> bool:
    return column.physical_type == "BYTE_ARRAY" and column.logical_type.type in ("STRING", "NONE", "JSON", "ENUM")


def _check_group(group: Any, leaves: list[int], largest: int, allowed: int) -> None:
    """Refuses by the file's own account what would be unpacked in one piece: a page has no bound but its column's."""
    for chunk in map(group.column, leaves):
        size = max(chunk.total_uncompressed_size, 8 * chunk.num_values)
        if size > allowed or (chunk.num_values and chunk.total_uncompressed_size / chunk.num_values > largest):
            raise _TooLarge(
                f"its column {chunk.path_in_schema} has {chunk.num_values:,} values that take {_mib(size)} unpacked"
            )


def _parts(batch: pa.RecordBatch, largest: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """(rows, bytes of them as Python's objects): all rows of a batch where they are small, else of its halves."""
    if (size := _unpacked_bytes(batch)) <= largest or len(batch) == 1:
        yield batch, size
        return
    half = len(batch) // 2
    for part in (batch.slice(0, half), batch.slice(half)):
        yield from _parts(part, largest)


def _as_written(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with numbers of 16 and 32 bits as they would be written down: 0.1, and not 0.10000000149011612."""
    for place, field in enumerate(batch.schema):
        if field.type in (pa.float16(), pa.float32()):
            narrow = batch.column(place)
            shortest = [float(str(number)) for number in narrow.to_numpy(zero_copy_only=False)]
            column = pa.array(shortest, pa.float64(), mask=narrow.is_null().to_numpy(zero_copy_only=False))
            batch = batch.set_column(place, field.name, column)
    return batch


def _unpacked_bytes(values: Any) -> int:
    """The size of a batch or an array once every text in a dictionary is written out."""
    if isinstance(values, pa.RecordBatch):
        return sum(map(_unpacked_bytes, values.columns))
    if isinstance(values, pa.DictionaryArray):
        lengths = pc.take(pc.binary_length(values.dictionary), values.indices)
        return _BYTES_PER_VALUE * len(values) + (pc.sum(lengths).as_py() or 0)
    if isinstance(values, pa.StructArray):
        return sum(map(_unpacked_bytes, values.flatten()))
    if isinstance(values, pa.MapArray):  # which Arrow does not flatten
        first, last = values.offsets[0].as_py(), values.offsets[-1].as_py()
        parts = (part.slice(first, last - first) for part in (values.keys, values.items))
        return _BYTES_PER_VALUE * len(values) + sum(map(_unpacked_bytes, parts))
    if isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _BYTES_PER_VALUE * len(values) + _unpacked_bytes(values.flatten())
    return _BYTES_PER_VALUE * len(values) + values.nbytes


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
