#!/usr/bin/env bash
# Tests and benchmarks on a bare GPU machine, the kernels first; about ten minutes, each step with a limit of its own: bench/gpu.sh [folder of wheels, default .whl]
#
# The machine has CUDA torch 2.11 or newer, Triton, transformers, numpy, nvcc, and no network. What it must have besides,
# or what the folder must hold as wheels (they are installed to a folder of their own, without their dependencies):
#   tyro: tyro, docstring-parser, typeguard, typing-extensions      plotly: plotly, narwhals, packaging
#   rich: rich, markdown-it-py, mdurl, pygments                     jinja2: jinja2, markupsafe
#   math-verify: math-verify, latex2sympy2-extended, antlr4-python3-runtime, sympy, mpmath
#   pyarrow, tokenizers, safetensors, huggingface_hub; for the tests pytest, pytest-timeout, hypothesis
#   optional: flash-attn (attention), liger-kernel (the policy's layers), every peer of bench/peers/kernels.py, vLLM
#   (weight_sync, rollout_vllm)
# One version of each. A step that fails is named at the end and in the exit code, and does not stop the others.
# Results: bench/results/<gpu>/*.json, and the same in $OUT if that is set.

set -u
cd "$(dirname "$0")/.."
wheels=${1:-.whl}
python=${PYTHON:-python3}
work=$(mktemp -d)
failed=()

keep_results() {
  if [ -n "${OUT:-}" ] && compgen -G "bench/results/${slug:-none}/*.json" > /dev/null; then
    mkdir -p "$OUT" && cp bench/results/"$slug"/*.json "$OUT"/
  fi
}

# step NAME SECONDS COMMAND...
step() {
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "=== $name: $*"
  timeout --kill-after=10 "$limit" "$@"
  local code=$?
  if [ $code -eq 124 ] || [ $code -eq 137 ]; then echo "=== $name ran past $limit s"; fi
  if [ $code -ne 0 ]; then failed+=("$name ($code)"); fi
  keep_results  # what has been measured survives what comes after
  echo "=== $name: exit $code after $((SECONDS - began)) s"
}

# A machine without CMake or a compiler has no native library, which only CPU tensors would use.
native_library() {
  "$python" -m fastgrpo_kernels.build || echo "going on without the native library"
}

kernel_tests() {
  "$python" -m pytest tests/kernels -p no:cacheprovider
}

sanitizer() {
  local every_kernel="a_step_is or outputs_are_those or larger_than_a_block or take_the_place or forbidden or one_call"
  compute-sanitizer --error-exitcode 1 "$python" -m pytest tests/kernels -k "$every_kernel" -p no:cacheprovider
}

gpu_tests() {
  "$python" -m pytest -m gpu tests --ignore tests/kernels -p no:cacheprovider
  local code=$?
  [ $code -eq 5 ] && echo "no GPU tests" && return 0
  return $code
}

# setup.py's mapping of packages to folders, without an installation: the machine's own packages stay as they are.
mkdir -p "$work/packages" "$work/wheels"
ln -s "$PWD/recipes" "$work/packages/fastgrpo_recipes"
export PYTHONPATH="$PWD:$PWD/kernels:$work/packages:$work/wheels${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 python
export -f native_library kernel_tests sanitizer gpu_tests

if compgen -G "$wheels/*.whl" > /dev/null; then
  step wheels 60 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$work/wheels" "$wheels"/*.whl
fi
step device 60 "$python" -c "import torch; assert torch.cuda.is_available(), 'no GPU'; print(torch.cuda.get_device_name())"
slug=$("$python" -c "import torch; from bench.harness import device_slug; print(device_slug(torch.device('cuda')))")
step native_library 60 bash -c native_library
step kernel_tests 150 bash -c kernel_tests
step tests 90 bash -c gpu_tests
if command -v compute-sanitizer > /dev/null; then step sanitizer 60 bash -c sanitizer; fi
step linear_grpo 100 "$python" -m bench linear_grpo --device cuda
step linear_logprobs 100 "$python" -m bench linear_logprobs --device cuda
step linear_grpo_wide 60 "$python" -m bench linear_grpo --device cuda --shape 8192,4096,151936 --output wide
for subject in grpo_loss group_advantages row_pass; do
  step "$subject" 45 "$python" -m bench "$subject" --device cuda
done
# Without vLLM these two say so and pass.
step weight_sync 200 "$python" -m bench weight_sync --device cuda
step rollout_vllm 300 "$python" -m bench rollout_vllm --device cuda
step broadcast 120 "$python" -m bench broadcast --device cuda
step attention 60 "$python" -m bench attention --device cuda
step tokens_per_s 160 "$python" -m bench tokens_per_s --device cuda
step memory 200 "$python" -m bench memory --device cuda --timeout_s 45

keep_results || failed+=("copy to OUT")
step summary 30 "$python" -m bench summary --device "${slug:-none}"
rm -rf "$work"

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all steps passed in $SECONDS s"
