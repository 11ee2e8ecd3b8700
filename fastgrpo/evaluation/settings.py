"""Every setting of an evaluation, with its meaning and its default."""

import math
import re
from dataclasses import dataclass
from typing import Literal

import tyro

from fastgrpo.command_line import expanded

PATHS = (
    "model", "compare", "benchmarks", "data", "rule", "verifier_model", "behaviours_key_file", "out", "servers",
    "server_key_file",
)  # fmt: skip
"""Settings that name files or folders, or may do so: ``~`` and ``$HOME`` are filled in."""

MAX_SAMPLES = 1000  # the limit of `majority_at_k`


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: tyro.conf.Positional[str] = ""
    """Hub id or local folder of the model."""
    compare: tuple[str, ...] = ()
    """Folders of finished evaluations to compare with each other; nothing is drawn."""
    suite: Literal["justrl", "simplerl", "prorl"] = "justrl"
    """The paper whose benchmarks and protocol are used."""
    benchmarks: tuple[str, ...] = ()
    """Names, data files or hub data sets (owner/name or owner/name:path) instead of all of the suite's."""
    data: str = ""
    """Folder with the benchmarks' files, such as AIME24/test.parquet; what is not there comes from the hub."""
    problems: int = 0
    """Take only this many problems of each benchmark, the first ones; 0 takes all."""
    samples: int | None = None
    """Responses per problem; None takes the suite's number."""
    max_response_tokens: int | None = None
    """A response is cut here and judged as it stands; None takes the suite's limit."""
    temperature: float | None = None
    """0 takes the most probable token; None takes the suite's temperature."""
    top_p: float | None = None
    """Draw from the most probable tokens that have this share; None takes the suite's."""
    template: str = ""
    """Text with {problem}, or "simple" or "boxed" for SimpleRL-Zoo's: what the model reads, without a chat template."""
    chat_template: bool = False
    """Wrap that text as one user message in the tokenizer's chat template."""
    special_tokens: bool = True
    """Without a chat template: let the tokenizer add its special tokens, such as BOS."""
    as_trained: bool = False
    """Use the prompt of the run that the model comes from, and judge by its verifier."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a response; empty takes the end tokens of the model's generation settings."""
    rule: str = ""
    """Verifier as package.module:function or file.py:function; empty takes the suite's."""
    verifier_model: str = ""
    """Model that judges what the rule rejects, such as opencompass/CompassVerifier-3B; empty asks none."""
    compass_without_question: bool = False
    """Leave the question out of what the verifier model reads, as JustRL's published script does."""
    behaviours: str = ""
    """Address of an OpenAI-compatible server (http://host:port/v1) that judges the four cognitive behaviours."""
    behaviours_model: str = ""
    """The judging model's name at that server."""
    behaviours_samples: int = 1
    """The first so many responses to each problem have their behaviours judged; 0 takes all."""
    behaviours_concurrency: int = 16
    """Requests to that server at a time."""
    behaviours_timeout_s: float = 300.0
    """Time that one reply may take before the request is tried again."""
    behaviours_key_file: str = ""
    """File with the server's key; empty sends none."""
    name: str = ""
    """Name of the evaluation's folder inside --out; empty makes it of the model's name and the suite's."""
    out: str = "evaluations"
    """Where evaluation folders are made. An evaluation that is already there goes on."""
    overwrite: bool = False
    """Start anew even if the folder holds an evaluation."""
    dry_run: bool = False
    """Print benchmarks and protocols, and stop."""
    seed: int = 1
    """Responses are a function of the seed, the benchmark's name, the problem's place and the sample."""
    engine: str = "builtin"
    """What draws the responses: builtin, a decode loop over the transformers model, or vllm."""
    servers: tuple[str, ...] = ()
    """vLLM servers of this model that draw the responses in place of an engine here: addresses, or a file of them."""
    server_key_file: str = ""
    """File with the servers' key; empty takes it from the environment (VLLM_API_KEY), if it is there."""
    server_start_s: float = 1800.0
    """The longest time without any server."""
    server_stall_s: float = 300.0
    """Seconds without a sign of life after which a server counts as dead."""
    ranks: int = 1
    """Processes that draw, each with GPUs of its own and a share of the problems. One process makes all verdicts."""
    tensor_parallel: int = 1
    """GPUs that share one engine's weights; vLLM only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is cuda if a GPU is visible."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Dtype of the weights; auto is bfloat16 on CUDA and float32 on CPU."""
    max_sequences: int = 1024
    """The most sequences that an engine decodes at the same time."""
    kv_cache_gib: float = 0.0
    """Memory of an engine's keys and values; 0 takes what is left on a GPU, and 1 on a CPU. vLLM only."""
    enforce_eager: bool = False
    """Let vLLM run without CUDA graphs, as JustRL's script does."""
    extrapolate: bool = False
    """Allow prompt and response to be longer than the model's positions; otherwise that is refused."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    verifier_workers: int = 0
    """Processes that judge; 0 takes one for each core."""
    verifier_timeout_s: float = 10.0
    """Time that one response may take to judge before it counts as wrong."""
    verifier_memory_gib: float = 4.0
    """Address space of one verifier process."""

    def __post_init__(self) -> None:
        for name in PATHS:
            given = getattr(self, name)
            filled = expanded(given) if isinstance(given, str) else tuple(map(expanded, given))
            object.__setattr__(self, name, filled)

    @property
    def folder_name(self) -> str:
        """Name of the evaluation's folder."""
        return self.name or f"{re.sub(r'[^A-Za-z0-9_.-]', '_', _short_name(self.model))}-{self.suite}"


def _short_name(model: str) -> str:
    """``owner/name`` -> name, ``runs/mine/checkpoints/step_000040/hf`` -> mine-step_000040, ``runs/mine/base/model`` ->
    mine-base."""
    parts = [part for part in model.split("/") if part not in ("", ".", "..")] or ["model"]
    if len(parts) > 3 and parts[-3] == "checkpoints" and parts[-1] == "hf":
        return f"{parts[-4]}-{parts[-2]}"
    return f"{parts[-3]}-base" if len(parts) > 2 and parts[-2:] == ["base", "model"] else parts[-1]


def validate(settings: Settings) -> None:
    """Raises ValueError for a setting outside its range, before anything is read; the message has the range."""
    from fastgrpo.rollout.engines import ENGINES  # brings transformers, which --help does not need
    from fastgrpo.rollout.servers.served_model import require_named

    def require(name: str, ok: bool, wanted: str) -> None:
        if not ok:
            raise ValueError(f"--{name} must be {wanted}, got {getattr(settings, name)!r}")

    if not settings.model:
        raise ValueError("give a model: fastgrpo evaluate MODEL [--suite justrl]")
    for name in ("problems", "seed", "verifier_workers", "kv_cache_gib", "behaviours_samples"):
        require(name, getattr(settings, name) >= 0, "0 or more")
    for name in ("ranks", "tensor_parallel", "max_sequences", "behaviours_concurrency"):
        require(name, getattr(settings, name) >= 1, "at least 1")
    for name in ("samples", "max_response_tokens"):
        require(name, getattr(settings, name) is None or getattr(settings, name) >= 1, "at least 1")
    of_verifiers = ("verifier_timeout_s", "verifier_memory_gib", "behaviours_timeout_s")
    for name in (*of_verifiers, "server_start_s", "server_stall_s"):
        require(name, 0 < getattr(settings, name) < math.inf, "above 0 and finite")
    require("samples", settings.samples is None or settings.samples <= MAX_SAMPLES, f"at most {MAX_SAMPLES}")
    temperature, top_p = settings.temperature, settings.top_p
    require("temperature", temperature is None or 0 <= temperature < math.inf, "0 or more and finite")
    require("top_p", top_p is None or 0 < top_p <= 1, "above 0 and at most 1")
    require("seed", settings.seed < 2**62, "below 2**62")
    require("name", re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", settings.folder_name) is not None, "a folder's name")
    if bool(settings.behaviours) != bool(settings.behaviours_model):
        raise ValueError("--behaviours URL and --behaviours_model NAME belong together: give both or neither")
    if settings.compass_without_question and not settings.verifier_model:
        raise ValueError("--compass_without_question needs a verifier model: add --verifier_model")
    require("engine", settings.engine in ENGINES, f"one of {', '.join(ENGINES)}")
    if settings.tensor_parallel > 1 and settings.engine == "builtin":
        raise ValueError("the built-in engine has no tensor parallelism (--tensor_parallel): add --engine vllm")
    if settings.server_key_file and not settings.servers:
        raise ValueError("--server_key_file is the key of servers: add --servers")
    if settings.servers and settings.ranks > 1:
        raise ValueError("--ranks are processes that draw, and --servers draw in their place: leave one of them")
    if settings.servers:
        require_named(settings.servers, settings.server_key_file)
