"""Peak memory of a process that reads a parquet file of 34 KB which unpacks to 1 GiB, and of one that people have."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

READ = """
import re, sys, time
from fastgrpo.data import load_problems
def mib(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, started = mib(), time.perf_counter()
try:
    what = f"{len(load_problems(sys.argv[1], ''))} problems"
except ValueError as error:
    what = "refused: " + str(error).partition(": ")[2]
print(f"{mib() - before:8.0f} MiB above {before:.0f}  {time.perf_counter() - started:6.2f} s  {what}")
"""
ROWS, CHARS = 64, 1 << 24


def main(argv: Sequence[str]) -> int:
    """Prints a line for each form of the file: dictionary or not, a text or a chat, and any FILE that is given."""
    parser = argparse.ArgumentParser(prog="bench parquet_memory", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="files to read besides")
    files = [Path(file) for file in parser.parse_args(argv).files]
    with tempfile.TemporaryDirectory() as folder:
        for file in [*_bombs(Path(folder)), *files]:
            print(f"{file.name:24} {file.stat().st_size:12,} bytes ", end="", flush=True)
            subprocess.run([sys.executable, "-c", READ, str(file)], check=True)
    return 0


def _bombs(folder: Path) -> list[Path]:
    made = []
    text = "a" * CHARS
    for form, prompt in {"text": text, "chat": [{"role": "user", "content": text}]}.items():
        table = pa.table({"prompt": [prompt] * ROWS, "answer": ["1"] * ROWS})
        for use_dictionary in (True, False):
            file = folder / f"{form}_{'dictionary' if use_dictionary else 'plain'}.parquet"
            pq.write_table(table, file, compression="zstd", use_dictionary=use_dictionary)
            made.append(file)
    return made
