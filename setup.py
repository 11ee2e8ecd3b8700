"""Where the packages lie; everything else about the project is in pyproject.toml. The kernels have their own."""

import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def refuse_pip_without_kernels() -> None:
    """Ends `pip install .` with what to do instead, where pip would only say that no `fastgrpo-kernels` can be found.

    That name is on no registry yet: it has to be installed, or be named in the same command.
    """
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # pip hides them while it builds
    if not (ROOT / "kernels").is_dir() or any(d.name == "fastgrpo-kernels" for d in distributions(path=places)):
        return
    words = _words_of_pip()
    options = ("--no-deps", "-r", "--requirement", "-f", "--find-links", "-i", "--index-url", "--extra-index-url")
    if "install" in words and not any("kernels" in w or w.split("=")[0] in options for w in words):
        editable = "-e " if {"-e", "--editable"} & set(words) else ""
        sys.exit(
            "fastgrpo needs fastgrpo-kernels, which lies beside it in kernels/ and is on no registry yet. "
            f"Install both in one command:\n\n    pip install {editable}{ROOT / 'kernels'} {editable}{ROOT}\n"
        )


def _words_of_pip() -> list[str]:
    """The words of the pip that builds this, the nearest process above that is one; none elsewhere, as in uv."""
    process = "self"
    for _ in range(4):
        try:
            parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
            words = Path(f"/proc/{parent}/cmdline").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            return []
        program, *names = [Path(w).name for w in words[:3]]
        if program.startswith(("pip", "python")) and any(n.startswith("pip") for n in (program, *names)):
            return words
        process = parent
    return []


refuse_pip_without_kernels()
setup(
    packages=[
        *find_packages(include=["fastgrpo", "fastgrpo.*"]),
        "fastgrpo_recipes",
        *(f"fastgrpo_recipes.{name}" for name in find_packages("recipes")),
    ],
    package_dir={"fastgrpo_recipes": "recipes"},
)
