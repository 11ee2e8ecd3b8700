"""Tokenizers of broken folders, and what they do beside their files."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import processors

from fastgrpo.data import load_tokenizer
from fastgrpo.data.tokenizer import num_rows_needed, require_rows
from fastgrpo.types import Prompt
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


def saved(folder, special_tokens, **settings):
    """The tokenizer of a folder whose file puts BOS before texts, or does not."""
    tokenizer = tiny_tokenizer()
    if not special_tokens:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("of_file, settings, begins", [
    (True, {}, True), (False, {}, False), (False, {"add_bos_token": True}, True), (True, {"add_bos_token": True}, True),
    (False, {"add_bos_token": True, "bos_token": None}, False),
])  # fmt: skip
def test_texts_begin_with_bos_once_where_the_file_or_the_setting_says_so(tmp_path, of_file, settings, begins):
    tokenizer = saved(tmp_path, of_file, **settings)
    assert tokenizer("one two")["input_ids"] == [0] * begins + [5, 6]
    assert tokenizer("one two", add_special_tokens=False)["input_ids"] == [5, 6]


def test_no_setting_cleans_up_what_was_written(tmp_path):
    tokenizer = saved(tmp_path, True, clean_up_tokenization_spaces=True)
    assert tokenizer.batch_decode([[5, 8, 1]], skip_special_tokens=True) == ["one ?"]


def test_rows_are_needed_for_all_tokens_but_control_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    assert num_rows_needed(tokenizer) == 10
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    assert num_rows_needed(tokenizer) == 10
    tokenizer.add_tokens(["four"])
    assert num_rows_needed(tokenizer) == 12


def test_a_prompt_with_a_token_beyond_the_rows_is_refused():
    prompts = [Prompt(row, "", "", prompt_ids=np.array(ids, np.int32)) for row, ids in ((3, [1, 7]), (4, [8, 2]))]
    require_rows(prompts, 9, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"row 4 has '\?' \(8\), and the model only 8 rows"):
        require_rows(prompts, 8, tiny_tokenizer())
