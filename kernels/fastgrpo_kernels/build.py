"""``python -m fastgrpo_kernels.build`` compiles the native library with CMake; `pip install` calls the same.

That needs torch, a C++20 compiler and CMake, no GPU and no CUDA toolkit: there is no CUDA source, because none has been
measured to be faster than a Triton kernel. This file imports nothing but the standard library, so that setup.py can
run it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
LIBRARY_NAME = "_native.so"
NAMESPACE = "fastgrpo_native"


class BuildError(RuntimeError):
    """The library cannot be built here; the message says what is missing or what the compiler said."""


def torch_folder() -> Path:
    """The torch of this environment, found without importing it: pip hides it while it builds.

    Raises BuildError where there is none.
    """
    for key in ("purelib", "platlib"):
        folder = Path(sysconfig.get_path(key)) / "torch"
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return folder
    raise BuildError("torch >= 2.10 is not installed in this environment: install it first, its headers are needed")


def build(output_dir: Path = PACKAGE, torch_dir: Path | None = None, namespace: str = NAMESPACE) -> Path:
    """Builds the library into ``output_dir`` and returns its path. Raises BuildError."""
    cmake = _tool("cmake")
    if cmake is None:
        raise BuildError("cmake was not found: `pip install cmake ninja`, or your system's package")
    if not any(map(_tool, ("c++", "g++", "clang++"))):
        raise BuildError("no C++ compiler was found: install g++ or clang")
    # A new folder: CMake remembers the tools of pip's environment, which is gone after the build.
    with tempfile.TemporaryDirectory() as folder:
        configure = [cmake, "-S", str(PACKAGE / "csrc"), "-B", folder, f"-DNAMESPACE={namespace}"]
        configure += [f"-DTORCH_DIR={torch_dir or torch_folder()}", f"-DOUTPUT_DIR={output_dir}"]
        if ninja := _tool("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        _run(configure)
        _run([cmake, "--build", folder, "--parallel"])
    return output_dir / LIBRARY_NAME


def _tool(name: str) -> str | None:
    """Its path, also where this environment has it and is not activated."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)]))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def main() -> int:
    """Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m fastgrpo_kernels.build", description="Builds the native library.")
    parser.add_argument("--torch_dir", type=Path, help="folder of a torch package; default: this environment's")
    arguments = parser.parse_args()
    try:
        print(f"fastgrpo_kernels: built {build(torch_dir=arguments.torch_dir)}")
    except BuildError as error:
        print(f"fastgrpo_kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
