"""What this code takes from vLLM stands in the sources of every version it says it works with; nothing is imported."""

import ast
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fastgrpo.rollout.servers.about import OLDEST
from fastgrpo.rollout.servers.client import INITIAL
from fastgrpo.rollout.vllm.versions import TORCH_OF
from tests.peers.vllm_sources import newest_patch, source

pytestmark = [pytest.mark.peers, pytest.mark.slow]

LAYERS = "vllm/model_executor/layers/"
MODELS = "vllm/model_executor/models/"
FUSED = "qkv_proj q_proj k_proj v_proj gate_up_proj gate_proj up_proj"

# (file, owner, names). The names of
#   a class              are its fields, attributes and methods, also those of its bases in the same file
#   a function           are its parameters
#   a function with "()" are what its body mentions
#   an assigned name     are the strings in its value
#   ""                   are defined or imported at the top of the file
RELIES_ON = [
    # The engine in this process.
    (
        "vllm/engine/arg_utils.py",
        "EngineArgs",
        "model dtype seed max_model_len max_num_seqs tensor_parallel_size distributed_executor_backend enforce_eager"
        " enable_prefix_caching gpu_memory_utilization kv_cache_memory_bytes logprobs_mode worker_extension_cls"
        " enable_sleep_mode load_format quantization trust_remote_code async_scheduling weight_transfer_config"
        " max_logprobs disable_log_stats skip_tokenizer_init generation_config compilation_config additional_config",
    ),
    ("vllm/config/parallel.py", "DistributedExecutorBackend", "uni mp external_launcher"),
    ("vllm/config/model.py", "LogprobsMode", "processed_logprobs"),
    ("vllm/envs.py", "", "VLLM_ENABLE_V1_MULTIPROCESSING VLLM_CPU_KVCACHE_SPACE VLLM_USE_V2_MODEL_RUNNER"),
    (
        "vllm/v1/engine/llm_engine.py",
        "LLMEngine",
        "step has_unfinished_requests apply_model wake_up engine_core model_executor",
    ),
    ("vllm/v1/engine/llm_engine.py", "LLMEngine.from_engine_args", "engine_args"),
    ("vllm/v1/engine/llm_engine.py", "LLMEngine.add_request", "request_id prompt params"),
    ("vllm/v1/engine/llm_engine.py", "LLMEngine.abort_request", "request_ids"),
    ("vllm/v1/engine/llm_engine.py", "LLMEngine.reset_prefix_cache", "reset_running_requests"),
    ("vllm/v1/engine/llm_engine.py", "LLMEngine.collective_rpc", "method args kwargs"),
    ("vllm/v1/engine/llm_engine.py", "LLMEngine.sleep", "level"),
    ("vllm/v1/engine/llm_engine.py", "LLMEngine.wake_up", "tags"),
    ("vllm/v1/engine/core_client.py", "InprocClient", "engine_core shutdown"),
    ("vllm/v1/engine/core.py", "EngineCore", "scheduler model_executor shutdown"),
    ("vllm/v1/core/sched/scheduler.py", "Scheduler.reset_prefix_cache()", "_preempt_request running"),
    ("vllm/v1/core/sched/scheduler.py", "Scheduler._preempt_request()", "_free_request_blocks num_computed_tokens"),
    ("vllm/distributed/parallel_state.py", "", "destroy_model_parallel get_tensor_model_parallel_rank"),
    # Requests and responses.
    ("vllm/inputs/llm.py", "TokensPrompt", "prompt_token_ids cache_salt"),
    ("vllm/inputs/engine.py", "tokens_input", "prompt_token_ids cache_salt"),
    (
        "vllm/sampling_params.py",
        "SamplingParams",
        "n temperature top_p top_k seed max_tokens stop_token_ids ignore_eos logprobs flat_logprobs detokenize"
        " output_kind skip_reading_prefix_cache",
    ),
    ("vllm/sampling_params.py", "RequestOutputKind", "CUMULATIVE DELTA FINAL_ONLY"),
    ("vllm/outputs.py", "RequestOutput", "request_id outputs finished"),
    ("vllm/outputs.py", "CompletionOutput", "index token_ids logprobs finish_reason stop_reason"),
    ("vllm/v1/engine/__init__.py", "FINISH_REASON_STRINGS", "stop length abort"),
    ("vllm/logprobs.py", "Logprob", "logprob"),
    ("vllm/logprobs.py", "FlatLogprobs", "start_indices token_ids logprobs"),
    # The route of a server that draws.
    ("vllm/v1/engine/async_llm.py", "AsyncLLM.generate", "prompt sampling_params request_id"),
    ("vllm/v1/engine/async_llm.py", "AsyncLLM.generate()", "CancelledError abort"),
    ("vllm/entrypoints/serve/utils/api_utils.py", "with_cancellation()", "listen_for_disconnect wrapper"),
    ("vllm/config/model.py", "ModelConfig", "get_vocab_size"),
    ("vllm/logprobs.py", "FlatLogprobs.append_fast", "token_ids logprobs"),
    # Where the weights are.
    (
        LAYERS + "linear.py",
        "QKVParallelLinear",
        "tp_rank tp_size num_heads num_kv_heads head_size num_kv_head_replicas total_num_heads total_num_kv_heads",
    ),
    (LAYERS + "linear.py", "MergedColumnParallelLinear", "tp_rank tp_size output_sizes output_partition_sizes"),
    (LAYERS + "linear.py", "ColumnParallelLinear", "tp_rank tp_size output_size_per_partition"),
    (LAYERS + "linear.py", "RowParallelLinear", "tp_rank tp_size input_size_per_partition"),
    (
        LAYERS + "vocab_parallel_embedding.py",
        "VocabParallelEmbedding",
        "tp_size shard_indices org_vocab_size num_embeddings_per_partition",
    ),
    (LAYERS + "vocab_parallel_embedding.py", "ParallelLMHead", "tie_weights shard_indices org_vocab_size"),
    (
        LAYERS + "vocab_parallel_embedding.py",
        "VocabParallelEmbeddingShardIndices",
        "org_vocab_start_index org_vocab_end_index",
    ),
    (MODELS + "qwen2.py", "Qwen2ForCausalLM.packed_modules_mapping", FUSED),
    (MODELS + "llama.py", "LlamaForCausalLM.packed_modules_mapping", FUSED),
    (MODELS + "mistral.py", "", "MistralForCausalLM LlamaForCausalLM"),
    # The worker that writes them.
    ("vllm/v1/worker/worker_base.py", "WorkerBase", "model_runner device get_model"),
    ("vllm/v1/worker/gpu_model_runner.py", "GPUModelRunner.reload_weights", "weights_iterator"),
    ("vllm/v1/worker/gpu/model_runner.py", "GPUModelRunner", "reload_weights get_model"),
    # Linear layers on a CPU; they import the dispatch when they call it, so it can be replaced.
    ("vllm/config/__init__.py", "", "get_current_vllm_config"),
    (LAYERS + "utils.py", "dispatch_cpu_unquantized_gemm", "layer remove_weight"),
    (LAYERS + "utils.py", "dispatch_cpu_unquantized_gemm()", "cpu_linear"),
    (LAYERS + "utils.py", "cpu_unquantized_gemm()", "cpu_linear"),
    (
        LAYERS + "linear.py",
        "UnquantizedLinearMethod.process_weights_after_loading()",
        "vllm.model_executor.layers.utils dispatch_cpu_unquantized_gemm",
    ),
    (
        LAYERS + "vocab_parallel_embedding.py",
        "UnquantizedEmbeddingMethod.process_weights_after_loading()",
        "vllm.model_executor.layers.utils dispatch_cpu_unquantized_gemm",
    ),
    # vLLM's own seam for other ways of sending weights.
    (
        "vllm/distributed/weight_transfer/factory.py",
        "WeightTransferEngineFactory.register_engine",
        "name module_path_or_cls",
    ),
    (
        "vllm/distributed/weight_transfer/base.py",
        "WeightTransferEngine",
        "init_info_cls update_info_cls init_transfer_engine start_weight_update receive_weights finish_weight_update"
        " shutdown",
    ),
    ("vllm/distributed/weight_transfer/base.py", "WeightTransferEngine.__init__", "config vllm_config device model"),
]


@contextmanager
def readable_sources() -> Iterator[None]:
    """Sources that cannot be read fail the test where CI is set; elsewhere they skip it."""
    try:
        yield
    except OSError as error:
        (pytest.fail if "CI" in os.environ else pytest.skip)(f"vLLM's sources cannot be read: {error}")


@pytest.fixture(scope="module")
def releases():
    with readable_sources():
        return {minor: newest_patch(minor) for minor in TORCH_OF}


each_version = pytest.mark.parametrize("minor", TORCH_OF, ids=lambda minor: ".".join(map(str, minor)))


@each_version
def test_what_is_taken_from_vllm_stands_in_its_sources(releases, minor):
    missing = []
    for path, owner, names in RELIES_ON:
        with readable_sources():
            missing += [f"{path}: {owner}: {name}" for name in missing_in(releases[minor], path, owner, names.split())]
    assert not missing, "\n".join([f"vLLM {releases[minor]} lacks", *missing])


def test_names_are_found_where_they_are_and_nowhere_else():
    tree = ast.parse("""
from other import borrowed
KINDS = Literal["one", "two"]
class Base:
    inherited: int
class Class(Base):
    field: int = 0
    def method(self, parameter, *, keyword=None):
        self.attribute: int = keyword
        parameter.not_ours = local = other.mentioned
""")
    assert names_of(tree, "") == {"borrowed", "KINDS", "Base", "Class"}
    assert names_of(tree, "KINDS") == {"one", "two"}
    assert names_of(tree, "Class") == {"inherited", "field", "method", "attribute"}
    assert names_of(tree, "Class.method") == {"self", "parameter", "keyword"}
    assert "mentioned" in (names_of(tree, "Class.method()") or ())
    assert names_of(tree, "Class.absent") is None


@each_version
def test_weights_that_nobody_has_written_have_the_label_that_an_evaluation_asks_for(releases, minor):
    with readable_sources():
        text = source(releases[minor], "vllm/v1/engine/core.py")
    assert (f'self._weight_version = "{INITIAL}"' in text) == (minor >= OLDEST)


@each_version
def test_each_version_pins_the_torch_that_is_written_here(releases, minor):
    release = ".".join(map(str, releases[minor]))
    with readable_sources():
        requirements = source(releases[minor], f"vllm-{release}.dist-info/METADATA")
    (pinned,) = re.findall(r"^Requires-Dist: torch==(\d+\.\d+)", requirements, re.MULTILINE)
    assert pinned == TORCH_OF[minor]


def missing_in(release: tuple[int, int, int], path: str, owner: str, names: list[str]) -> list[str]:
    try:
        tree = ast.parse(source(release, path))
    except KeyError:
        return ["no such file"]
    found = names_of(tree, owner)
    return ["nothing of this name"] if found is None else [name for name in names if name not in found]


def names_of(tree: ast.Module, owner: str) -> set[str] | None:
    """As the comment above RELIES_ON says; None where there is no such owner."""
    if not owner:
        return {name for statement in tree.body for name in defined_by(statement)}
    node: ast.AST = tree
    for part in owner.removesuffix("()").split("."):
        inside = [statement for statement in getattr(node, "body", []) if part in defined_by(statement)]
        if not inside:
            return None
        node = inside[-1]
    if owner.endswith("()"):
        return set(mentioned(node))
    if isinstance(node, ast.ClassDef):
        return members(tree, node)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        return {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def defined_by(statement: ast.AST) -> list[str]:
    """Names that a statement binds; those of an ``if`` are of both its branches."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    if isinstance(statement, ast.If):
        return [name for inner in (*statement.body, *statement.orelse) for name in defined_by(inner)]
    return [target.id for target in targets(statement) if isinstance(target, ast.Name)]


def targets(statement: ast.AST) -> list[ast.AST]:
    """What an assignment assigns to, a tuple taken apart."""
    if isinstance(statement, ast.Assign):
        return [inner for target in statement.targets for inner in ast.walk(target)]
    return [statement.target] if isinstance(statement, ast.AnnAssign) else []


def members(tree: ast.Module, node: ast.ClassDef) -> set[str]:
    own = {name for statement in node.body for name in defined_by(statement)}
    attributes = (target for inner in ast.walk(node) for target in targets(inner) if isinstance(target, ast.Attribute))
    own |= {a.attr for a in attributes if isinstance(a.value, ast.Name) and a.value.id == "self"}
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    for base in tree.body:
        if isinstance(base, ast.ClassDef) and base.name in bases:
            own |= members(tree, base)
    return own


def mentioned(node: ast.AST) -> list[str]:
    names: list[str] = []
    for inner in ast.walk(node):
        match inner:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                names.append(name)
            case ast.ImportFrom(module=str(name)):
                names.append(name)
    return names
