"""The tiny recipe with steps that take as long as trackers need to start."""

import time

from tests import tiny_recipe
from tests.tiny_recipe import config, prepare

__all__ = ["config", "prepare", "reward"]


def reward(response: str, answer: str) -> bool:
    time.sleep(0.015)
    return tiny_recipe.reward(response, answer)
