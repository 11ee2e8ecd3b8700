"""Writes a C function that returns 0 for every symbol of CUDA's libraries that torch needs and nobody has answered.

``unanswered.py SITE_PACKAGES OUTPUT OBJECT...``
"""

import re
import subprocess
import sys
from pathlib import Path

ASKED = re.compile(r"^(cuda|cublas|nccl)[A-Z]|^cublasLt|^cu[A-Z]")


def symbols(option: str, files: list[Path]) -> set[str]:
    """Names that ``nm`` lists under an option, without their versions."""
    listed = subprocess.run(["nm", *option.split(), *map(str, files)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines() if line and not line.endswith(":")}


def main(site_packages: str, output: str, *objects: str) -> None:
    libraries = sorted(Path(site_packages, "torch", "lib").glob("*.so"))
    asked = {name for name in symbols("-D --undefined-only", libraries) if ASKED.match(name)}
    answered = symbols("--defined-only", [Path(o) for o in objects])
    functions = [f'int {name}(void) {{ return fake_unanswered("{name}"); }}' for name in sorted(asked - answered)]
    Path(output).write_text("\n".join(["int fake_unanswered(const char *name);", *functions, ""]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
