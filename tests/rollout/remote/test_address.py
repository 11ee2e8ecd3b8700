"""The secret of the pool goes from the first rank to the others, and not by the store."""

import stat

import pytest

from fastgrpo.ranks import secret
from fastgrpo.ranks.secret import SECRET, launch_secret
from fastgrpo.rollout.remote.address import Address, find, new_secret, published


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """Gives this process an environment, as a launcher would."""

    def tell(text: str | None) -> None:
        monkeypatch.delenv(SECRET, raising=False)
        if text is not None:
            monkeypatch.setenv(SECRET, text)
        launch_secret.cache_clear()

    tell(None)
    yield tell
    launch_secret.cache_clear()


def test_the_launchers_secret_is_used_and_nothing_is_written(told, tmp_path):
    told("0123456789abcdef")
    address = Address("10.0.0.1", 4711, new_secret())
    text = published(address, tmp_path / "engines")
    assert text == "10.0.0.1 4711 -" and not (tmp_path / "engines").exists()
    assert find(text, tmp_path / "engines") == address
    assert SECRET not in secret.os.environ  # verifiers, and what they run, would inherit it


def test_without_one_it_is_in_a_file_of_this_user_alone(tmp_path):
    folder = tmp_path / "engines"
    published(Address("10.0.0.1", 1, new_secret()), folder)
    address = Address("10.0.0.1", 4711, new_secret())
    text = published(address, folder)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and address.secret.hex() not in text
    assert find(text, folder) == address


@pytest.mark.parametrize("text", ["", "h 1", "h 1 ../../etc/passwd", "h 1 .pool_0", "h 99999999 -", "h 1 - 2"])
def test_another_text_in_the_store_is_refused(told, tmp_path, text):
    told("0123456789abcdef")
    with pytest.raises(ValueError, match="has no address of an engine pool"):
        find(text, tmp_path)


def test_a_node_without_the_secret_is_told_what_is_missing(told, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"was given {SECRET} and this one was not"):
        find("h 1 -", tmp_path)
    monkeypatch.setattr("fastgrpo.rollout.remote.address.FOUND_S", 0.2)
    with pytest.raises(ValueError, match="the run's folder must be shared by all nodes"):
        find("h 1 .pool_0123456789abcdef", tmp_path)


def test_a_secret_that_is_easily_guessed_is_refused(told):
    told("password")
    with pytest.raises(ValueError, match="at least 16 characters, got 8"):
        launch_secret()
