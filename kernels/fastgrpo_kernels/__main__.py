"""``python -m fastgrpo_kernels`` prints which implementation runs for CPU and for CUDA tensors."""

import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from . import __version__
from .native import LIBRARY


def main() -> int:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    cuda = torch.cuda.is_available()
    print(f"fastgrpo_kernels {__version__}, torch {torch.__version__}, triton {triton or 'not installed'}")
    if LIBRARY.exists():
        print(f"CPU tensors:  native library {LIBRARY}")
    else:
        print("CPU tensors:  plain torch; `python -m fastgrpo_kernels.build` builds the faster library")
    needed = [] if triton else ["triton is not installed"]
    needed += [] if cuda else ["torch sees no CUDA GPU here"]
    print("CUDA tensors: Triton kernels" + (f"; {', '.join(needed)}" if needed else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
