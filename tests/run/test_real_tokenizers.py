"""The start of a run with the real tokenizers of four families: what ends a response, and 10,000 of DAPO's problems."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fastgrpo.run import inputs
from fastgrpo.run.inputs import stop_token_ids
from tests.real_tokenizers import (
    DAPO,
    DEEPSEEK,
    FAMILIES,
    GEMMA,
    QWEN,
    bare,
    loaded,
    model_folder,
    needs_dapo,
    needs_tokenizers,
    of_each_family,
)
from tests.run.starting import started

pytestmark = [pytest.mark.slow, needs_tokenizers]
read_tokenizers_once = pytest.mark.usefixtures("read_once")

NUM_PROBLEMS, LIMIT = 10_000, 256
REQUEST = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture
def one_row(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"problem": "What is 1+1?", "answer": "2"}) + "\n")
    return path


@pytest.fixture
def read_once(monkeypatch):
    """Runs have the tokenizer that the process has read already, which takes up to four seconds."""
    families = {str(f.folder / "tokenizer.json"): f for f in FAMILIES}

    def load(path, trust_remote_code):
        return loaded(families[str((Path(path) / "tokenizer.json").readlink())])

    monkeypatch.setattr(inputs, "load_tokenizer", load)


@of_each_family
@read_tokenizers_once
def test_a_run_stops_at_the_tokens_that_the_model_ends_with_and_has_nothing_to_say(
    family, tmp_path, one_row, read_once
):
    config, _, said = started(model_folder(family, tmp_path / "model"), one_row)
    assert stop_token_ids(config) == family.ends and family.turn_end in family.ends
    assert said == [f"{one_row}: 1 rows, 1 problems (none dropped)"]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f is not DEEPSEEK], ids=str)
def test_a_base_models_settings_are_said_to_end_no_turn_of_the_chat(family, tmp_path, one_row):
    """DeepSeek's base has the end token of its chats."""
    end = bare(family).token_to_id(family.end_token)
    model = model_folder(family, tmp_path / "model", ends=(end,), eos_token=family.end_token)
    turn_end = bare(family).id_to_token(family.turn_end)
    _, _, (warning, _) = started(model, one_row)
    assert f"ends the assistant's turn with {turn_end!r} ({family.turn_end}), which ends no response" in warning
    assert warning.endswith(f"--rollout.stop_token_ids {family.turn_end} makes it one")


def test_the_setting_that_the_warning_names_ends_the_turns(tmp_path, one_row):
    model = model_folder(QWEN, tmp_path / "model", ends=(151643,), eos_token=QWEN.end_token)
    config, _, said = started(model, one_row, stop_token_ids=(QWEN.turn_end,))
    assert stop_token_ids(config) == (151643, 151645) and len(said) == 1


@read_tokenizers_once
def test_a_token_that_the_model_has_no_row_for_is_refused_where_a_prompt_has_it(tmp_path, one_row, read_once):
    model = model_folder(GEMMA, tmp_path / "model")
    one_row.write_text(json.dumps({"problem": "What is <image_soft_token>?", "answer": "2"}) + "\n")
    with pytest.raises(ValueError, match=r"row 0 has '<image_soft_token>' \(262144\), and the model only 262144 rows"):
        started(model, one_row)


@pytest.fixture(scope="module")
def dapo(tmp_path_factory):
    """(the file, the problems in it as they stand)"""
    rows = pq.read_table(DAPO).slice(0, NUM_PROBLEMS)
    path = tmp_path_factory.mktemp("dapo") / "train.parquet"
    pq.write_table(rows, path)
    return path, [chat[-1]["content"] for chat in rows.column("prompt").to_pylist()]


@needs_dapo
@read_tokenizers_once
@of_each_family
def test_ten_thousand_problems_of_dapo_are_encoded_and_those_that_are_too_long_counted(
    family, dapo, tmp_path, read_once
):
    """What a run takes for it, against one call of the tokenizer alone, is printed (pytest -rP)."""
    path, contents = dapo
    model = model_folder(family, tmp_path / "model")
    loaded(family), bare(family)
    begin = time.perf_counter()
    _, found, said = started(model, path, max_prompt_tokens=LIMIT)
    whole_s = time.perf_counter() - begin
    [prompts] = found.train

    assert all(content.endswith(REQUEST.strip()) for content in contents)
    problems = [content.removesuffix(REQUEST.strip()).strip() for content in contents]
    texts = [family.text(problem + REQUEST) for problem in problems]
    begin = time.perf_counter()
    theirs = [e.ids for e in bare(family).encode_batch(texts, add_special_tokens=False)]
    bare_s = time.perf_counter() - begin
    lengths = [len(ids) for ids in theirs]
    dropped = sum(n > LIMIT for n in lengths)
    print(
        f"{family}: {whole_s:.1f} s, {whole_s / bare_s:.2f} of a bare call ({1e6 * bare_s / len(texts):.0f} us a "
        f"problem); longest {max(lengths)}, {dropped} over {LIMIT} tokens, {sum(n > 1024 for n in lengths)} over 1,024"
    )
    duplicates = len(contents) - len(set(contents))
    kept = [row for row, n in enumerate(lengths) if n <= LIMIT]
    assert [p.row for p in prompts] == kept and duplicates == 0 < dropped
    assert [p.prompt_ids.tolist() for p in prompts] == [theirs[row] for row in kept]
    assert said[-1] == f"{path}: 10000 rows, {len(kept)} problems ({dropped} over {LIMIT} tokens)"
