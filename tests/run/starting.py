"""The part of a run's start that reads tokenizer and problems."""

from pathlib import Path

import torch

from fastgrpo.config import Config, DataConfig, ModelConfig, RolloutConfig
from fastgrpo.run.inputs import load_inputs


class Said(list):
    say = list.append


def started(model, data, max_prompt_tokens=1024, chat_template=True, **rollout):
    """(configuration, what a run starts from, what was said)"""
    config = Config(
        model=ModelConfig(path=str(model)),
        data=DataConfig(train=str(data), held_out="", max_prompt_tokens=max_prompt_tokens, chat_template=chat_template),
        rollout=RolloutConfig(**rollout),
        runs_dir=str(model),
    )
    Path(config.run_dir).mkdir(exist_ok=True)
    said = Said()
    return config, load_inputs([config], None, said, torch.device("cpu"), torch.float32, need_answers=True), said
