"""What the proof of an architecture means for a run: go on and say so, or refuse in words."""

from transformers import PretrainedConfig

from fastgrpo.config import Config, ModelConfig
from fastgrpo.models.attention import IMPLEMENTATIONS
from fastgrpo.models.config_file import read_config
from fastgrpo.models.tiny import CannotShrink
from fastgrpo.proof.architecture import TOLERANCE, Failure, prove_architecture
from fastgrpo.rollout.engines import engine_kind

ON_A_CPU = IMPLEMENTATIONS["padded"]
"""Stands for every attention of ours in small: the kernels for GPUs are tried on the real weights."""
_TRIED = {
    "packing": (
        "the trainer's logprobs of sequences that lie end to end",
        "they see each other, as states of linear attention, convolutions and SSM layers do, or its layers want more "
        "than tokens and positions",
    ),
    "rows": (
        "the trainer's logprobs of sequences in padded rows of their own",
        "it looks at more than the tokens before each, or draws at random",
    ),
    "sharing": (
        "the trainer's logprobs of two responses whose prompt stands once",
        "its layers do more with a prompt than attention, token by token, does",
    ),
    "checkpointing": (
        "the gradients of layers that recompute their activations",
        "these layers do not do the same thing twice",
    ),
    "sampling": (
        "the built-in engine's logprobs",
        "its attention, its cache or its masks are not those that the engine has",
    ),
}


def require_proven(config: Config, attention: str) -> str:
    """What was proven, in words; ``attention`` is transformers' name of the run's.

    Raises ValueError for a model that the trainer or the engine would compute wrongly.
    """
    model = config.model
    of_transformers = read_config(model.path, model.trust_remote_code)
    small = ON_A_CPU if attention in IMPLEMENTATIONS.values() else attention
    engine_of = engine_kind(config.rollout.engine).of_model
    recomputes, code = model.activation_checkpointing is not False, model.trust_remote_code
    try:
        done = prove_architecture(of_transformers, small, engine_of, recomputes=recomputes, trust_remote_code=code)
    except CannotShrink as error:
        return f"{model.path} has no tiny copy to be proven on ({error}): its own weights have to do"
    except Failure as failure:
        raise ValueError(_refusal(model, of_transformers, failure, small)) from failure
    return (
        f"{model.path}: right in small: with random weights trainer and engine compute what the model's own code does "
        f"({', '.join(done)})"
    )


def require_sampled(config: Config) -> str:
    """What was proven of the engine, in words; "" of engines that are not ours, which are not tried.

    Raises ValueError for a model that the engine would compute wrongly.
    """
    model, engine_of = config.model, engine_kind(config.rollout.engine).of_model
    if engine_of is None:
        return ""
    of_transformers = read_config(model.path, model.trust_remote_code)
    try:
        prove_architecture(of_transformers, None, engine_of, trust_remote_code=model.trust_remote_code)
    except CannotShrink as error:
        return f"{model.path} has no tiny copy on which the engine could be tried ({error})"
    except Failure as failure:
        raise ValueError(
            f"{model.path} ({of_transformers.model_type}) would be sampled wrongly: in small and with random weights "
            f"{_TRIED['sampling'][0]} {_found(failure)}. Probably {_TRIED['sampling'][1]}: take --engine vllm"
        ) from failure
    return f"{model.path}: right in small: with random weights the engine computes what the model's own code does"


def _done(failure: Failure) -> str:
    return "sampled" if failure.check == "sampling" else "trained"


def _found(failure: Failure) -> str:
    if failure.error:
        return f"cannot be had ({failure.error})"
    return f"are off by {failure.difference:.2g} from its own forward pass, more than {TOLERANCE:g}"


def _refusal(model: ModelConfig, config: PretrainedConfig, failure: Failure, attention: str) -> str:
    tried, cause = _TRIED[failure.check]
    return (
        f"{model.path} ({config.model_type}) would be {_done(failure)} wrongly: in small and with random weights "
        f"{tried} {_found(failure)}. Probably {cause}. {_advice(model, config, failure, attention)}"
        f"--model.skip_proof trains it as it is"
    )


def _advice(model: ModelConfig, config: PretrainedConfig, failure: Failure, attention: str) -> str:
    """What would help, tried as the rest is."""
    if failure.check == "sampling":
        return "--rollout.engine vllm has an engine of its own; "
    if failure.check == "checkpointing":
        return "--model.activation_checkpointing False does without; "
    for other in ("sdpa", "eager"):
        if attention == ON_A_CPU and is_right(config, other, model.trust_remote_code):
            return (
                f"--model.attention {other} is right, with a padded row for each sequence, and needs "
                f"--rollout.engine vllm; "
            )
    return ""


def is_right(config: PretrainedConfig, attention: str, trust_remote_code: bool = False) -> bool:
    """Whether the trainer computes the model rightly in small."""
    try:
        prove_architecture(config, attention, None, recomputes=False, trust_remote_code=trust_remote_code)
    except (Failure, ValueError):
        return False
    return True
