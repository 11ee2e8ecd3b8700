"""The adapters' tests in every release that the adapters know, each in its own environment: `make peers`."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

# Newest first: its environment is the one that `make test-full` uses, and the older ones stand on it.
WINDOW = {
    "trl": ("1.16.0", "1.15.0", "1.14.2"),
    "verl": ("0.9.1", "0.9.0", "0.8.0"),
    "openrlhf": ("0.11.2", "0.11.1", "0.11.0"),
}
PACKAGES = ("transformers", "torch")
RESULTS = Path("build/peers")


def python_of(peer: str, version: str) -> str:
    environment = peer if version == WINDOW[peer][0] else f"{peer}-{version}"
    return f".venv-{environment}/bin/python"


def versions_in(python: str, packages: tuple[str, ...]) -> list[str]:
    code = "import sys; from importlib import metadata; print(*map(metadata.version, sys.argv[1:]))"
    return subprocess.check_output([python, "-c", code, *packages], text=True).split()


def tested(peer: str, version: str) -> tuple[str, bool]:
    """A line of the table, and whether tests ran there and none failed."""
    python, result = python_of(peer, version), RESULTS / f"{peer}-{version}.xml"
    installed, *others = versions_in(python, (peer, *PACKAGES))
    assert installed == version, f"{python} has {peer} {installed}, not {version}: remove its environment"
    result.unlink(missing_ok=True)
    tests = ["-m", "pytest", "-q", f"--junitxml={result}", f"tests/peers/test_adapter_{peer}.py"]
    code = subprocess.run([python, *tests]).returncode
    counts = ElementTree.parse(result).getroot()[0].attrib if result.exists() else {}
    total, skipped = int(counts.get("tests", 0)), int(counts.get("skipped", 0))
    failed = int(counts.get("failures", 0)) + int(counts.get("errors", 0))
    passed = total - failed - skipped
    cells = [peer, version, *others, str(passed), str(failed), str(skipped)]
    return "| " + " | ".join(cells) + " |", code == 0 and passed > 0


def main() -> int:
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = [tested(peer, version) for peer, versions in WINDOW.items() for version in versions]
    print("| peer | version | transformers | torch | passed | failed | skipped |")
    print("|---|---|---|---|---|---|---|")
    print(*(line for line, _ in rows), sep="\n")
    return 0 if all(good for _, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
