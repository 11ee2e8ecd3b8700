"""The GPUs of this machine, from the driver itself: the import of torch takes seconds, and more on a cold disk."""

import ctypes
import re


def gpu_names() -> list[str]:
    """The name of every GPU that the driver shows; [] without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_name(driver, ordinal) for ordinal in range(count.value)]


def _name(driver: ctypes.CDLL, ordinal: int) -> str:
    name = ctypes.create_string_buffer(256)
    return name.value.decode() if not driver.cuDeviceGetName(name, 256, ordinal) else "gpu"


def slug(name: str) -> str:
    """A GPU's name in a form that can be a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
