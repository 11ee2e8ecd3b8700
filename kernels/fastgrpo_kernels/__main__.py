"""``python -m fastgrpo_kernels`` prints which implementation runs for CPU and for CUDA tensors."""

import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from fastgrpo_kernels.native import LIBRARY


def main() -> int:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "not installed"
    print(f"torch {torch.__version__}, triton {triton}, CUDA {'yes' if torch.cuda.is_available() else 'no'}")
    built = (
        f"native library {LIBRARY}" if LIBRARY.exists() else "plain torch; `python -m fastgrpo_kernels.build` is faster"
    )
    print(f"CPU tensors:  {built}\nCUDA tensors: Triton kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
