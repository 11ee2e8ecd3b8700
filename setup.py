"""Where the packages lie; everything else about the project is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fastgrpo", "fastgrpo.*"]), "fastgrpo_kernels", "fastgrpo_recipes"],
    # Not `kernels` itself: Hugging Face's own package has that name.
    package_dir={"fastgrpo_kernels": "kernels/fastgrpo_kernels", "fastgrpo_recipes": "recipes"},
)
