"""What a model's folder holds besides its weights, as it came: an export is that folder with other weights."""

from pathlib import Path

from transformers.utils import cached_file

LARGEST_BYTES = 1 << 27  # larger ones are weights or data under another name
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".tflite"}
_ABOUT = {".md", ".png", ".jpg", ".pdf", ".lock"}  # the base, and not what was made of it
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def base_files(base: str) -> dict[str, bytes]:
    """The files of a hub id or folder by their names, read now: the folder may be gone when an export is written.

    Configuration, generation settings, tokenizer, chat templates, processors and code are among them.
    """
    folder = folder_of(base)
    found = [*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(found) if _is_wanted(file)}


def folder_of(base: str) -> Path:
    """Where the files of a hub id or folder are on this machine."""
    config = cached_file(base, "config.json")
    assert config is not None
    if not Path(base).is_dir():
        for name in _PROCESSORS:  # what no part of a text model has asked the hub for
            cached_file(
                base,
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
            )
    return Path(config).parent


def _is_wanted(file: Path) -> bool:
    name = file.name.lower()
    is_weight = file.suffix.lower() in _WEIGHTS or name.endswith(".index.json")
    is_other = file.suffix.lower() in _ABOUT or name.startswith(".")
    return file.is_file() and not is_weight and not is_other and file.stat().st_size <= LARGEST_BYTES
