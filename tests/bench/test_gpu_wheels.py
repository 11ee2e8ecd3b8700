"""What a GPU image lacks: which wheels are fetched, that they travel in pieces, and that they are installed offline."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bench.gpu import wheels
from bench.gpu.wheels import fetch, install


def made_up_wheel(folder: Path, name: str, *requires: str, padding: int = 0) -> Path:
    """A wheel of one module that says its name; ``padding`` bytes make it larger."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"NAME = {name!r}\n")
        archive.writestr(f"{name}.bin", bytes(range(256)) * (padding // 256))
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: by hand\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


# Fetched.


def test_requirements_are_those_of_the_target_without_extras(tmp_path):
    wheel = made_up_wheel(
        tmp_path, "a", "always>=2", "windows; sys_platform == 'win32'", "linux; sys_platform == 'linux'",
        "old; python_version < '3.12'", "asked; extra == 'asked'", "arm; platform_machine == 'aarch64'",
    )  # fmt: skip
    assert [r.name for r in wheels._requirements_of(wheel)] == ["always", "linux"]


@pytest.fixture
def index(tmp_path, monkeypatch) -> dict[str, tuple[str, ...]]:
    """Packages and their requirements, in place of a registry's; the project needs ``there`` and ``root``."""
    known = {"root": ("Mid_Dle", "there"), "mid-dle": ("leaf", "root"), "leaf": (), "peer": ("leaf",)}

    def download(requirement: Requirement, folder: Path) -> Path | None:
        name = wheels.canonicalize_name(requirement.name)
        return made_up_wheel(folder, name.replace("-", "_"), *known[name]) if name in known else None

    monkeypatch.setattr(wheels, "_download", download)
    needs = [Requirement(text) for text in ("There>=1", "root")]
    monkeypatch.setattr(wheels, "_project_requirements", lambda: needs)
    (tmp_path / "image.txt").write_text("# what is there\n\nthere\n")
    return known


def fetched(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_what_the_image_lacks_is_fetched_with_all_that_it_requires(tmp_path, index, capsys):
    assert fetch(tmp_path / "carried", [], tmp_path / "image.txt") == 0
    assert fetched(tmp_path / "carried") == ["leaf", "mid_dle", "root"]
    assert "in 3 wheels that the image lacks" in capsys.readouterr().out


def test_an_extra_package_is_fetched_as_well(tmp_path, index):
    assert fetch(tmp_path / "carried", ["peer"], tmp_path / "image.txt") == 0
    assert fetched(tmp_path / "carried") == ["leaf", "mid_dle", "peer", "root"]


def test_a_wheel_that_cannot_be_had_is_named_with_1(tmp_path, index, capsys):
    del index["leaf"]
    assert fetch(tmp_path / "carried", [], tmp_path / "image.txt") == 1
    assert "no wheel of leaf for Python 3.12 on Linux can be had" in capsys.readouterr().err


def test_the_project_s_requirements_are_read_and_the_image_has_some_of_them():
    names = {wheels.canonicalize_name(r.name) for r in wheels._project_requirements()}
    there = {wheels.canonicalize_name(line) for line in wheels._lines(wheels.IMAGE)}
    assert {"torch", "tyro", "pytest"} <= names and not [n for n in names if n.startswith("fastgrpo")]
    assert "torch" in there and names - there


# In pieces.


@pytest.mark.parametrize("size", [1, 1000, 1001, 2000, 2500])
def test_a_wheel_that_travelled_in_pieces_has_the_same_bytes(tmp_path, monkeypatch, size):
    monkeypatch.setattr(wheels, "PIECE_BYTES", 1000)
    content = bytes(i * i % 251 for i in range(size))
    wheel = tmp_path / "carried" / "a-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    (tmp_path / "joined").mkdir()
    wheel.write_bytes(content)
    wheels._in_pieces(wheel)
    travelled = list(wheel.parent.iterdir())
    assert all(path.stat().st_size <= 1000 for path in travelled)
    assert len(travelled) == -(-size // 1000)
    (joined,) = wheels._joined(wheel.parent, tmp_path / "joined")
    assert joined.name == wheel.name and joined.read_bytes() == content


def test_what_was_carried_goes_when_the_new_wheel_is_there_and_not_before(tmp_path, monkeypatch):
    carried = tmp_path / "carried"
    old = made_up_wheel(carried, "peer")
    other = made_up_wheel(carried, "other_peer")
    pieces = carried / "peer-0.9-py3-none-any.whl.000"
    pieces.touch()
    monkeypatch.setattr(wheels, "_pip_download", lambda requirement, target: False)
    assert wheels._download(Requirement("Peer"), carried) is None
    assert {*carried.iterdir()} == {old, other, pieces}

    def download(requirement: Requirement, target: str) -> bool:
        (Path(target) / "peer-2.0-py3-none-any.whl").touch()
        return True

    monkeypatch.setattr(wheels, "_pip_download", download)
    new = wheels._download(Requirement("Peer"), carried)
    assert new == carried / "peer-2.0-py3-none-any.whl"
    assert {*carried.iterdir()} == {new, other}


# Installed.


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(wheels, "CARRIED", tmp_path / "site")
    return tmp_path / "site"


def imported(site: Path, name: str) -> str:
    code = f"import {name}; print({name}.NAME)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(site)}, capture_output=True, text=True)
    return done.stdout.strip()


def test_wheels_are_installed_from_pieces_and_not_again_until_something_changes(tmp_path, site, monkeypatch):
    monkeypatch.setattr(wheels, "PIECE_BYTES", 1000)
    carried = tmp_path / "carried"
    wheels._in_pieces(made_up_wheel(carried, "large_peer", "not_there", padding=4096))
    made_up_wheel(carried, "small_peer")
    assert len(list(carried.glob("large_peer*.whl.*"))) > 1
    install(carried)
    assert imported(site, "large_peer") == "large_peer" and imported(site, "small_peer") == "small_peer"

    run, calls = subprocess.run, []
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, **options: calls.append(command))
    install(carried)
    assert calls == []
    made_up_wheel(carried, "third_peer")
    install(carried)
    assert len(calls) == 1
    monkeypatch.setattr(wheels.subprocess, "run", run)


def test_a_folder_without_wheels_installs_nothing(tmp_path, site, monkeypatch):
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: pytest.fail("called pip"))
    (tmp_path / "carried").mkdir()
    install(tmp_path / "carried")
    (tmp_path / "carried" / "README").touch()
    install(tmp_path / "carried")


def test_a_wheel_that_cannot_be_installed_is_said_and_tried_again(tmp_path, site, capfd):
    carried = tmp_path / "carried"
    carried.mkdir()
    (carried / "broken-1.0-py3-none-any.whl").write_bytes(b"no archive")
    install(carried)
    assert f"the wheels of {carried} could not be installed" in capfd.readouterr().err
    assert not (site / "carried.txt").exists()
