"""``torchrun -m bench.shuffled_advantages RECIPE [--section.field value ...]``: a training run that cannot learn.

It is the normal trainer, except that the advantages of a step go to other responses: if accuracy rises here, it is not
because right answers are rewarded.
"""

import sys

import numpy as np
import torch.distributed as dist

from fastgrpo.ranks import Ranks, choose_device, launched_ranks
from fastgrpo.recipe import find_recipe, load_recipe
from fastgrpo.recipe.validate import validate, validate_phases
from fastgrpo.run.run import train
from fastgrpo.train import resolve
from fastgrpo.trainer import Trainer


class ShuffledAdvantages(Trainer):
    """A trainer that permutes advantages over the whole batch; the permutation is a function of seed and step."""

    def advantages(self, rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:  # [N], [N] -> [N]
        order = np.random.default_rng((self.config.seed, self.progress.step)).permutation(len(rewards))
        return super().advantages(rewards, lengths)[order]


def run(arguments: list[str]) -> None:
    recipe = load_recipe(find_recipe(arguments[0]))
    rank, num_ranks = launched_ranks()
    recipe, config = resolve(recipe, arguments[1:], rank == 0)
    validate(config, num_ranks)
    validate_phases(recipe.algorithm, config, num_ranks)
    ranks = Ranks.connect(choose_device(config.device), config.parallel)
    try:
        train(recipe, config, ranks, trainer_class=ShuffledAdvantages)
        ranks.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    run(sys.argv[1:])
