"""What a process needs to see the fake device, and what the device counts."""

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "build" / "carried"
"""What the GPU image lacks, as `make rehearse` has fetched it."""
LIBRARY = ROOT / "build" / "fake_gpu" / "libfake_gpu.so"


def environment(gpu: str, num_gpus: int = 1) -> dict[str, str]:
    """This environment with a device preloaded: h100, h200 or a800. Ends the program where the device is not built."""
    if not LIBRARY.exists():
        raise SystemExit(f"{LIBRARY} is not built: make build/fake_gpu/libfake_gpu.so")
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # which `tests` sets without a GPU
    return {
        **inherited,
        "FAKE_GPU": gpu,
        "FAKE_GPU_COUNT": str(num_gpus),
        "LD_PRELOAD": str(LIBRARY),
        "LD_LIBRARY_PATH": str(LIBRARY.parent),  # the driver is looked up there by its name
        "TRITON_LIBCUDA_PATH": str(LIBRARY.parent),
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton_cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "inductor_cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Counts(NamedTuple):
    """Since the process began."""

    launches: int
    waits: int  # calls that hold the host until the device is done
    unpinned_copies: int  # asynchronous by their name, and held by the driver
    allocations: int
    wrong_launches: int  # that no device could run
    free_bytes: int

    @classmethod
    def now(cls) -> "Counts":
        values = (ctypes.c_long * len(cls._fields))()
        ctypes.CDLL(None).fake_gpu_counters(values)
        return cls(*values)

    def since(self, earlier: "Counts") -> "Counts":
        return Counts(*(a - b for a, b in zip(self, earlier, strict=True)))


def is_fake() -> bool:
    """Whether this process sees the fake device."""
    return hasattr(ctypes.CDLL(None), "fake_gpu_counters")


def launches_by_name() -> dict[str, int]:
    """Of the kernels that Triton and Inductor have compiled."""
    function = ctypes.CDLL(None).fake_gpu_launches_by_name
    function.restype = ctypes.c_char_p
    pairs = (line.rsplit(" ", 1) for line in function().decode().splitlines())
    return {name: int(count) for name, count in pairs}
