"""Runs a recipe in small, in this process, as it is or with a part of it changed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fastgrpo.ranks import Ranks, choose_device
from fastgrpo.recipe import Recipe, find_recipe, load_recipe
from fastgrpo.recipe.arguments import resolve
from fastgrpo.recipe.validate import validate, validate_phases
from fastgrpo.run.setup import train

Metrics = list[dict[str, Any]]


def run_shrunk(name: str, runs: Path, *settings: str, **algorithm: Any) -> Metrics:
    """The records of the steps. ``algorithm`` replaces parts of the recipe's, after they were made small."""
    arguments = ["--shrink", "--runs_dir", str(runs), "--device", "cpu", *settings]
    recipe, config = resolve(load_recipe(find_recipe(name)), arguments)
    recipe = replace(recipe, algorithm=replace(recipe.algorithm, **algorithm))
    validate(config, 1, recipe.algorithm)
    validate_phases(recipe.algorithm, config, 1)
    return run(recipe, config)


def run(recipe: Recipe, config: Any) -> Metrics:
    ranks = Ranks.connect(choose_device(config.device), config.parallel)
    try:
        train(recipe, config, ranks)
    finally:
        ranks.watchdog.close()
        dist.destroy_process_group()
    records = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["step"] > 0]
