"""From a recipe to a run: everything before the first response."""

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from fastgrpo.algorithm import Algorithm
from fastgrpo.command_line.system_errors import in_words
from fastgrpo.config import Config, fingerprint
from fastgrpo.data import PromptStream
from fastgrpo.models.load import attention_of, compute_dtype
from fastgrpo.policy.activations import fit
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.policy import load_policy, sequence_cost
from fastgrpo.policy.reference import Reference
from fastgrpo.policy.sharding import full_weights, shard
from fastgrpo.proof.model import require_proven
from fastgrpo.proof.weights import allowed
from fastgrpo.ranks import Ranks
from fastgrpo.recipe import Recipe
from fastgrpo.rewards import Item, VerifierPool
from fastgrpo.rollout.compare_weights import WeightMismatch
from fastgrpo.rollout.engines import check_engine, engine_kind
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.start_rollouts import start_rollouts
from fastgrpo.run.checkpoint import Checkpointer, Exporter
from fastgrpo.run.display import Display
from fastgrpo.run.folder import RunFolder
from fastgrpo.run.golds import check_golds
from fastgrpo.run.inputs import load_inputs, stop_token_ids
from fastgrpo.run.run import Run
from fastgrpo.run.same_data import DataFacts, data_of
from fastgrpo.run.schedule import RunSchedule
from fastgrpo.run.verifiers import example_of, start_pool
from fastgrpo.track import require_trackers
from fastgrpo.trainer import Trainer
from fastgrpo.types import Sampling


class CannotStart(Exception):
    """The system refuses what the start of a run needs, on this rank alone: the others do not know of it."""


def train(recipe: Recipe, config: Config, ranks: Ranks) -> None:
    """Does the whole run.

    Raises Refused for what the user can mend, before training begins and mostly before weights load; CannotStart for
    what the system refuses this rank in the meantime.
    """
    folder = RunFolder(Path(config.run_dir))
    if not (ranks.is_first and sys.stdout.isatty()):
        disable_progress_bar()
    with Display(config.steps, quiet=not ranks.is_first) as display, contextlib.ExitStack() as ends:
        with ranks.watchdog.phase("start", config.deadline.start_s):
            try:
                run = start(recipe, config, folder, ranks, display, ends)
            except OSError as error:
                raise CannotStart(in_words(error)) from error
        run.resume_or_start()
        run.steps()
        with ranks.watchdog.phase("checkpoint", config.deadline.checkpoint_s):
            run.finish()
            ranks.barrier()


def start(
    recipe: Recipe,
    config: Config,
    folder: RunFolder,
    ranks: Ranks,
    display: Display,
    ends: contextlib.ExitStack,
) -> Run:
    """The run, with all that it needs before its first response. What must be ended is noted in ``ends``."""
    dtype, algorithm = compute_dtype(config.model, ranks.device), recipe.algorithm
    configs = algorithm.configs(config)
    ranks.together(lambda: check_engine(config, ranks.device, dtype))
    ranks.together(lambda: require_trackers(config.track if ranks.is_first else ()))
    lock = folder.lock(display.say)
    ranks.together(lambda: ends.enter_context(lock) if ranks.is_first else None)
    ranks.together(lambda: None if ranks.is_first else ends.enter_context(lock.joined()))
    ranks.together(lambda: prepare(recipe, config, folder, ranks, display))
    inputs = ranks.together(
        lambda: load_inputs(
            configs, algorithm.problem_text, display, ranks.device, dtype, need_answers=not recipe.asks_for_row()
        )
    )
    ranks.together(lambda: prove_in_small(config, ranks, display))
    first = inputs.train[0][0]
    example = ranks.together(lambda: example_of(first, config.data.train, recipe.asks_for_row()))
    pool = ends.enter_context(ranks.together(lambda: start_verifiers(recipe, config, ranks, example)))
    check_golds(recipe, pool, inputs.by_source(configs), {c.data.train for c in configs}, ranks, display.say)
    if "row" in pool.signature.names:
        inputs = ranks.together(partial(inputs.with_columns, configs))
    data = data_of(inputs, ranks)
    ranks.together(lambda: folder.check_data(config, data) if ranks.is_first else None)
    streams = [PromptStream(encoded, config.seed, config.data.shuffle) for encoded in inputs.train]
    trainer = ranks.together(lambda: setup(config, algorithm, ranks, inputs.tokenizer, streams[0], pool))
    ends.callback(trainer.judging.close)
    ends.callback(trainer.rollouts.close)
    recomputed = fit(trainer.learner.policy, ranks, config.model, config.optimizer, config.objective.loss_path)
    if recomputed and config.model.activation_checkpointing == "auto":
        display.say(f"{recomputed} layers recompute their activations: the free memory does not hold them all")
    exporter = ranks.together(lambda: make_exporter(config, trainer, dtype, display))
    ranks.together(lambda: prove_on_weights(trainer, dtype, display))
    ranks.together(lambda: begin_folder(recipe, config, folder, ranks, data, display))
    keep_last, this = config.checkpoint.keep_last, fingerprint(config)
    checkpointer = Checkpointer(folder.checkpoints, ranks, keep_last, exporter, display.say, this)
    schedule = RunSchedule(algorithm, config, streams)
    run = Run(recipe, config, folder, display, trainer, checkpointer, inputs.held_out, schedule)
    ends.push(run.end_trackers)
    return run


def make_exporter(config: Config, trainer: Trainer, dtype: torch.dtype, display: Display) -> Exporter:
    """What writes exports, tried out on the first rank: a run must not find at its first checkpoint that it cannot."""
    exporter = Exporter(config.model, trainer.learner.policy.model, dtype)
    for note in exporter.prepare() if trainer.ranks.is_first else ():
        display.say(note)
    return exporter


def prove_in_small(config: Config, ranks: Ranks, display: Display) -> None:
    """Raises ValueError for a model that trainer or engine would compute wrongly; the first rank tries it in small."""
    if config.model.skip_proof:
        display.say("--model.skip_proof: nobody compares trainer and sampler with the model's own forward pass")
    elif ranks.is_first:
        attention = attention_of(config.model, ranks.device, compute_dtype(config.model, ranks.device))
        display.say(require_proven(config, attention))


def prove_on_weights(trainer: Trainer, dtype: torch.dtype, display: Display) -> None:
    """The same of the real weights, on all ranks."""
    try:
        trainer.compare_weights()
        if trainer.config.model.skip_proof:
            return
        own, sampled = trainer.prove(dtype)
    except WeightMismatch as error:
        raise ValueError(str(error)) from error
    display.say(
        f"logprobs: trainer against the model's own forward pass {own}, engine against trainer {sampled} (nats, over "
        f"{own.num_tokens} tokens; rounding makes up to {allowed(dtype):g} in the mean)"
    )


def prepare(recipe: Recipe, config: Config, folder: RunFolder, ranks: Ranks, display: Display) -> None:
    """Looks at the run folder and lets the recipe make what it starts from, on the first rank."""
    if not ranks.is_first:
        return
    folder.check(config, recipe.algorithm.describe())
    if recipe.prepare is not None:
        recipe.prepare(config, folder.base, display.say)


def begin_folder(
    recipe: Recipe, config: Config, folder: RunFolder, ranks: Ranks, data: DataFacts, display: Display
) -> None:
    """Makes the folder this run's, on the first rank."""
    if ranks.is_first:
        facts = {
            "name": config.name,
            "recipe": recipe.name,
            "model": config.model.path,
            "device": ranks.device_name,
            "num_ranks": ranks.count,
            "published": recipe.published,
            "algorithm": recipe.algorithm.describe(),
            "reward": recipe.reward,
            "data": data,
        }
        folder.begin(config, facts, display.say)


def start_verifiers(recipe: Recipe, config: Config, ranks: Ranks, example: Item) -> VerifierPool:
    """The pool of this rank's rewards. Raises ValueError as `start_pool` does.

    Where engines have ranks of their own, responses come to the first trainer rank, and it judges all; the others only
    try the reward.
    """
    workers = config.reward.workers
    if config.rollout.samples_apart:
        workers = workers * ranks.count if ranks.is_first else 1
    return start_pool(recipe, config.reward, example, workers)


def setup(
    config: Config,
    algorithm: Algorithm,
    ranks: Ranks,
    tokenizer: Any,
    stream: PromptStream,
    pool: VerifierPool,
) -> Trainer:
    """The trainer, which loads the weights twice: sharded to be trained, and whole to be sampled from. Where the run
    measures a divergence, a third copy is the frozen reference."""
    dtype = compute_dtype(config.model, ranks.device)
    policy = load_policy(config.model, config.rollout.temperature, ranks.device)
    sampling = Sampling(
        group_size=config.rollout.group_size,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=config.rollout.temperature,
        stop_token_ids=stop_token_ids(config),
        seed=config.seed,
    )
    learner = Learner(
        shard(policy, ranks.mesh, dtype),
        ranks,
        sequence_cost(policy.model),
        config.objective,
        config.optimizer,
        need_entropy=not engine_kind(config.rollout.engine).tells_entropy,
        reference=load_reference(config, ranks) if algorithm.needs_reference(config) else None,
        own_loss=algorithm.loss,
        max_response_tokens=config.rollout.max_response_tokens,
    )
    rollouts = start_rollouts(
        algorithm.widest(config),
        ranks,
        PromptsInOrder(stream),
        sampling,
        policy.model.named_parameters(),
        partial(full_weights, policy),
    )
    return Trainer(
        config=config,
        ranks=ranks,
        tokenizer=tokenizer,
        rollouts=rollouts,
        pool=pool,
        learner=learner,
        run_dir=Path(config.run_dir),
        algorithm=algorithm,
    )


def load_reference(config: Config, ranks: Ranks) -> Reference:
    """The frozen model that the run begins with; a checkpoint may put a later one in its place."""
    policy = load_policy(config.model, config.rollout.temperature, ranks.device).requires_grad_(False)
    return Reference(shard(policy, ranks.mesh, compute_dtype(config.model, ranks.device)))
