"""What a model's folder holds besides its weights, as it came: an export is that folder with other weights."""

from pathlib import Path

from transformers.utils import cached_file

LARGEST_BYTES = 1 << 27  # larger ones are data under another name
_KINDS = {".json", ".jinja", ".model", ".txt", ".py", ".tiktoken", ".vocab", ".bpe", ".spm", ".merges"}
_LICENCES = ("license", "licence", "notice", "copying")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def base_files(base: str) -> dict[str, bytes]:
    """The files of a hub id or folder by their names, read now: the folder may be gone when an export is written.

    They are those that a model is made of: configuration, generation settings, tokenizer, chat templates, processors,
    code, and its licence.
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
    is_index = name.endswith(".index.json")  # of weights in several files
    is_kind = file.suffix.lower() in _KINDS and not is_index and not name.startswith(".")
    return (is_kind or name.startswith(_LICENCES)) and file.is_file() and file.stat().st_size <= LARGEST_BYTES
