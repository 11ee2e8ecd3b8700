"""The two distributions: what each holds, that one version names both, and what pip is told of one alone."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

import fastgrpo

ROOT = Path(__file__).parents[1]


def test_fastgrpo_needs_the_kernels_of_its_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    kernels = (ROOT / "kernels" / "fastgrpo_kernels" / "__init__.py").read_text()
    assert f"fastgrpo-kernels=={fastgrpo.__version__}" in project["dependencies"]
    assert re.search(r'__version__ = "(.*)"', kernels)[1] == fastgrpo.__version__


def test_torch_is_all_that_the_kernels_need():
    project = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == ["torch>=2.10"] == requires("fastgrpo-kernels")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The tracked files, without what was built in the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: not (ROOT / name).is_dir(), listed.split()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_each_wheel_holds_its_own_packages_and_the_kernels_one_the_library(sources, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(sources / "kernels"), str(sources)], check=True, capture_output=True)
    names = {w.name.split("-")[0]: zipfile.ZipFile(w).namelist() for w in tmp_path.glob("*.whl")}
    tops = {name: {n.split("/")[0] for n in held if ".dist-info/" not in n} for name, held in names.items()}
    assert tops == {"fastgrpo_kernels": {"fastgrpo_kernels"}, "fastgrpo": {"fastgrpo", "fastgrpo_recipes"}}
    package = ROOT / "kernels" / "fastgrpo_kernels"
    modules = {str(path.relative_to(ROOT / "kernels")) for path in package.rglob("*.py")}
    sources_of_library = {f"fastgrpo_kernels/csrc/{path.name}" for path in (package / "csrc").iterdir()}
    assert modules | sources_of_library | {"fastgrpo_kernels/_native.so"} <= set(names["fastgrpo_kernels"])
    assert next(tmp_path.glob("fastgrpo_kernels-*.whl")).name.split("-")[2:4] == ["py3", "none"]


@pytest.mark.slow
def test_pip_is_told_what_to_install_where_the_kernels_are_missing(sources, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    command = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "install", "--dry-run"]
    alone = subprocess.run([*command, "-e", "."], cwd=sources, capture_output=True, text=True)
    assert alone.returncode
    assert f"pip install -e {sources / 'kernels'} -e {sources}" in alone.stdout + alone.stderr
    both = subprocess.run([*command, "--no-deps", "./kernels", "."], cwd=sources, capture_output=True, text=True)
    assert both.returncode == 0, both.stderr[-2000:]
