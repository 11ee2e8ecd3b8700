"""How much memory the host can still give to this process."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")
HOST = Path("/proc/meminfo")
_OF_A_GROUP = (  # its limit, its use, and what of that is a cache of files: version 2, version 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory_bytes() -> int:
    """What there is without swapping: the host's, or less where a container or a scheduler sets a limit."""
    try:
        host = 1024 * _field(HOST, "MemAvailable:")
    except OSError:  # not Linux: unknown, and so nothing
        return 0
    return min(host, *_left_in_groups())


def _left_in_groups() -> Iterator[int]:
    """For every control group that this process is in, what its limit leaves."""
    yield 2**63
    try:
        named = [line.split(":", 2) for line in MINE.read_text().splitlines()]
    except OSError:
        return
    roots = {"": CGROUPS, "memory": CGROUPS / "memory"}
    for _, controllers, name in (parts for parts in named if len(parts) == 3):
        root = roots.get("memory" if "memory" in controllers.split(",") else controllers)
        group = None if root is None else root / name.lstrip("/")
        while root is not None and group is not None and group.is_relative_to(root):
            for limit, usage, cache in _OF_A_GROUP:
                try:
                    left = int((group / limit).read_text()) - int((group / usage).read_text())
                    yield left + _field(group / "memory.stat", cache)
                except (OSError, ValueError):  # "max", or a group without a limit of memory
                    continue
            group = group.parent


def _field(file: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name} ")), 0)
