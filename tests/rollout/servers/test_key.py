"""The key of a launch's own servers goes from the first rank to the others, and not by the store."""

import stat

import pytest

from fastgrpo.ranks import secret
from fastgrpo.ranks.secret import SECRET, launch_secret
from fastgrpo.rollout.servers.key import found_key, published_key


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


def test_the_launchers_secret_makes_the_key_and_nothing_is_written(told, tmp_path):
    told("0123456789abcdef")
    key, text = published_key(tmp_path / "engines")
    assert text == "-" and not (tmp_path / "engines").exists()
    assert found_key(text, tmp_path / "engines") == key and "0123456789abcdef" not in key
    assert SECRET not in secret.os.environ  # verifiers, and what they run, would inherit it


def test_another_secret_makes_another_key(told, tmp_path):
    keys = []
    for text in ("0123456789abcdef", "0123456789abcdeg"):
        told(text)
        keys.append(published_key(tmp_path)[0])
    assert len(set(keys)) == 2 and all(len(key) == 64 for key in keys)


def test_without_one_it_is_in_a_file_of_this_user_alone(tmp_path):
    folder = tmp_path / "engines"
    old, _ = published_key(folder)
    key, text = published_key(folder)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and key not in text and key != old
    assert found_key(text, folder) == key


@pytest.mark.parametrize("text", ["", "--", "../../etc/passwd", ".key_0", ".key_0123456789abcdeg", "-\n", "- 2"])
def test_another_text_in_the_store_is_refused(told, tmp_path, text):
    told("0123456789abcdef")
    with pytest.raises(ValueError, match="does not tell of a key of servers"):
        found_key(text, tmp_path)


def test_a_node_without_the_secret_is_told_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"was given {SECRET} and this one was not"):
        found_key("-", tmp_path)
    monkeypatch.setattr("fastgrpo.rollout.servers.key.FOUND_S", 0.1)
    with pytest.raises(ValueError, match="the run's folder must be shared by all nodes"):
        found_key(".key_0123456789abcdef", tmp_path)


def test_a_file_that_shows_late_is_waited_for(tmp_path, monkeypatch):
    key, text = published_key(tmp_path)
    (tmp_path / text).rename(tmp_path / "elsewhere")
    monkeypatch.setattr(
        "fastgrpo.rollout.servers.key.time.sleep", lambda s: (tmp_path / "elsewhere").rename(tmp_path / text)
    )
    assert found_key(text, tmp_path) == key


def test_a_secret_that_is_easily_guessed_is_refused(told):
    told("password")
    with pytest.raises(ValueError, match="at least 16 characters, got 8"):
        launch_secret()
