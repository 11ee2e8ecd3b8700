"""The recipes of a real pretrained model: their problems, the conversion of its file, a run of a few small steps."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from fastgrpo_recipes.smollm2 import _base_model, word_problems
from fastgrpo_recipes.smollm2._word_problems import STORIES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fastgrpo.train import main

BY_HAND = {
    1: [((3, 4), 7), ((3, 4), 7), ((3, 4), 7), ((9, 4), 5), ((9, 4), 5), ((3, 4), 12), ((3, 4), 12), ((12, 4), 3)],
    2: [((5, 4, 2), 7), ((3, 4, 2), 10), ((5, 4, 2), 22), ((5, 3), 20), ((12, 4, 5), 15), ((9, 3), 3)],
    3: [((2, 3, 4, 1), 10), ((3, 5, 4, 6), 17), ((3, 4, 5), 32), ((4, 3, 11), 1)],
}
"""Of each story, in order: its numbers, and the answer that a reader of the story finds."""


def written(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("num_steps", BY_HAND)
def test_a_story_has_the_answer_that_a_reader_finds(num_steps):
    answers = [
        story.answer(*numbers) for story, (numbers, _) in zip(STORIES[num_steps], BY_HAND[num_steps], strict=True)
    ]
    assert answers == [answer for _, answer in BY_HAND[num_steps]]


def test_problems_are_the_same_for_a_seed_and_nobody_has_less_than_one_thing():
    first, again = (list(islice(word_problems.word_problems(7), 3000)) for _ in range(2))
    assert first == again and first != list(islice(word_problems.word_problems(8), 3000))
    assert len({p.text for p in first}) == 3000 and all(p.answer > 0 for p in first)
    assert all("{" not in p.text and p.text.endswith("?") for p in first)


def test_what_is_shared_is_shared_without_rest():
    for problem in islice(word_problems.word_problems(0), 2000):
        assert type(problem.answer) is int
    for story, numbers in ((STORIES[1][7], 2), (STORIES[2][4], 3)):
        draws = [story.draw(random.Random(seed)) for seed in range(200)]
        assert all(len(drawn) == numbers and drawn[0] % drawn[1] == 0 for drawn in draws)


def test_training_and_held_out_problems_share_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(word_problems, "make_base_model", lambda folder, say: None)
    word_problems.prepare(word_problems.config, tmp_path, print)
    train, held_out = written(tmp_path, "train"), written(tmp_path, "held_out")
    assert len(train) == 4096 and len(held_out) == 256
    assert not {row["problem"] for row in train} & {row["problem"] for row in held_out}
    assert {row["level"] for row in held_out} == {1, 2, 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    said: list[str] = []
    _base_model.make_base_model(folder, said.append)
    assert "are those of the file, read by itself" in said[-1]
    return folder


@pytest.mark.slow
def test_a_conversion_that_is_not_the_files_model_is_found(base, tmp_path):
    """The heads' rows of one layer as GGUF has them: what a conversion without their reordering makes."""
    file, folder = _base_model._fetch(tmp_path), tmp_path / "wrong"
    folder.mkdir()
    for part in base.iterdir():
        if part.suffix != ".safetensors":
            (folder / part.name).write_bytes(part.read_bytes())
    weights = load_file(base / "model.safetensors")
    name = "model.layers.7.self_attn.q_proj.weight"
    halves = weights[name].unflatten(0, (-1, 2, 32))
    weights[name] = halves.transpose(1, 2).reshape_as(weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert _base_model.conversion_error(file, folder) > 100 * _base_model.LARGEST_DIFFERENCE


@pytest.mark.slow
def test_a_real_model_trains_resumes_bit_for_bit_and_is_exported_whole(base, tmp_path):
    small = [
        *("--data.prompts_per_step", "4", "--rollout.group_size", "4", "--rollout.max_response_tokens", "16"),
        *("--evaluation.max_problems", "8", "--evaluation.every_steps", "0", "--checkpoint.every_steps", "1"),
        *("--optimizer.updates_per_step", "1"),
    ]

    def train(name: str, *more: str) -> None:
        settings = ["--model.path", str(base), "--runs_dir", str(tmp_path), "--name", name, *small, *more]
        assert main(["smollm2_word_problems", *settings]) == 0

    def exported(name: str) -> Path:
        return tmp_path / name / "checkpoints" / "step_000003" / "hf"

    train("whole", "--steps", "3")
    train("stopped", "--steps", "2")
    train("stopped", "--steps", "3", "--resume")
    whole, stopped, begun = (load_file(f / "model.safetensors") for f in (exported("whole"), exported("stopped"), base))
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert any(not torch.equal(whole[name], begun[name].to(whole[name].dtype)) for name in whole)
    model = AutoModelForCausalLM.from_pretrained(exported("whole"))
    read = dict(model.named_parameters())
    assert all(torch.equal(read[name], tensor.to(read[name].dtype)) for name, tensor in whole.items() if name in read)
