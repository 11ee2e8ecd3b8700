"""Tokenizers of broken folders."""

import json
import shutil

import pytest

from fastgrpo.data import load_tokenizer
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
