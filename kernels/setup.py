"""The native library; everything else about the distribution is in pyproject.toml."""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildNative(build_ext):
    """CMake's library in place of an extension module. Without a compiler or torch the package works in plain torch."""

    def build_extension(self, ext: Extension) -> None:
        native = runpy.run_path(str(ROOT / "fastgrpo_kernels" / "build.py"))
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # one that was left from other sources must not pass for this one
        try:
            print(f"fastgrpo_kernels: built {native['build'](target.parent)}", file=sys.stderr)
        except native["BuildError"] as error:
            print(f"fastgrpo_kernels: no native library, the CPU runs plain torch: {error}", file=sys.stderr)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # loaded by torch, not by Python


class OnePythonFits(bdist_wheel):
    """The library knows torch's stable ABI and nothing of Python: one wheel for each platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("fastgrpo_kernels._native", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": OnePythonFits},
)
