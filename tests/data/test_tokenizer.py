"""Tokenizers of broken folders, and end tokens that end nothing."""

import json
import shutil

import pytest

from fastgrpo.data import load_tokenizer
from fastgrpo.data.tokenizer import end_token_note
from tests.data.tokenizers import CHAT, tiny_tokenizer


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"[" * 200_000, b'{"version": "1.0"', b"7"])
def test_a_broken_file_is_refused_with_its_name(tmp_path, name, content):
    tiny_tokenizer(CHAT).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}: its tokenizer cannot be read .*tokenizer.* is damaged"):
        load_tokenizer(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    tiny_tokenizer(CHAT).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"there is no tokenizer|its tokenizer cannot be read"):
        load_tokenizer(str(tmp_path / "a"))


def test_an_end_token_that_ends_no_response_is_said():
    tokenizer = tiny_tokenizer()
    assert end_token_note(tokenizer, (1, 5), "--stop") == ""
    note = end_token_note(tokenizer, (5, 7), "--stop")
    assert note.startswith("note: the tokenizer's end token '<eos>' (1) ends no response") and "name 5, 7" in note
    assert note.endswith("--stop 1 makes it one")
    tokenizer.eos_token = None
    assert end_token_note(tokenizer, (5,), "--stop") == ""
