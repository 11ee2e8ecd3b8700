"""Chats -> the texts that a tokenizer's template makes of them, in a process that ends.

A template is a program of whoever made the model: it may loop, take all memory, or raise.
"""

import contextlib
import ctypes
import json
import mmap
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = list[dict[str, str]]  # role and content of each message

TEXT_S = 60.0  # that the template may take for one chat
SENT_EVERY_S = 0.1
MEMORY_BYTES = 1 << 30  # that it may take besides what the process has
MAX_CHARS = 1 << 24
NOON = datetime(2024, 7, 26, 12)
"""When every template runs: the day that Llama's own takes where it has no clock. A prompt must be the same on every
day, or a run could not be resumed on the next one."""
REPLY = "The sum is 80235, and 80235 is the answer."
ANOTHER_DAY = datetime(2031, 1, 2, 3, 4, 5)
_PR_SET_PDEATHSIG = 1
_PLACE_BYTES = 8


@dataclass(frozen=True)
class Habits:
    """What a template does with chats."""

    reads_message: bool  # another problem makes another text
    reads_history: bool  # so do other messages before it; true where no chat has any
    opens_turn: bool  # asked to open the assistant's turn, it does
    is_dated: bool  # it asks for the day or draws at random, both of which stand still here
    turn_end: str = ""  # what it writes after an assistant's reply; empty too where it writes none


class TemplateFailed(ValueError):
    """A template that makes no text of a chat; says which and why."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", why: str, place: int) -> None:
        super().__init__(f"the chat template of {source_of(tokenizer)} {why}")
        self.place = place  # of the chat


def render(tokenizer: "PreTrainedTokenizerBase", chats: Sequence[Chat]) -> tuple[list[str], Habits]:
    """The text of every chat, the assistant's turn opened, and what the template does besides.

    Raises TemplateFailed for a template that raises, takes longer than ``TEXT_S`` for a chat or more than
    ``MEMORY_BYTES``, or makes a text of more than ``MAX_CHARS``.
    """
    import transformers.utils.chat_template_utils  # noqa: F401, before the fork

    forked = multiprocessing.get_context("fork")  # a tokenizer is not always to be pickled, and nothing runs yet
    ours, theirs = forked.Pipe(duplex=False)
    with ours, mmap.mmap(-1, _PLACE_BYTES) as place:
        process = forked.Process(target=_serve, args=(theirs, place, tokenizer, chats, os.getpid()), daemon=True)
        with _without_warning():
            process.start()
        theirs.close()
        texts: list[str] = []
        try:
            habits = Habits(*_received(ours))
            while len(texts) < len(chats):
                texts += _received(ours)
        except _Fault as fault:
            raise TemplateFailed(tokenizer, str(fault), int.from_bytes(place[:], "little")) from None
        finally:
            process.kill()
            process.join()
    return texts, habits


def source_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Where a tokenizer's template stands: its file, or the tokenizer's name."""
    folder = Path(tokenizer.name_or_path)
    files = (folder / name for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"))
    return str(next((file for file in files if file.is_file()), repr(tokenizer.name_or_path)))


class _Fault(Exception):
    """What a template did in place of a text."""


def _received(ours: Connection) -> Any:
    if not ours.poll(TEXT_S):
        raise _Fault(f"did not end within {TEXT_S:.0f} s")
    try:
        fault, value = json.loads(ours.recv_bytes())
    except (EOFError, OSError):  # OSError where it ended in the middle of a message
        raise _Fault("ended the process that ran it") from None
    if fault:
        raise _Fault(fault)
    return value


def _serve(theirs: Connection, place: mmap.mmap, tokenizer: Any, chats: Sequence[Chat], parent: int) -> None:
    """Sends the habits, then the texts, each time as JSON of [what went wrong, value]. Nothing it does outlasts it."""
    _become_nobody(theirs, parent)
    with contextlib.suppress(OSError):  # nobody reads any more
        try:
            _send(theirs, _habits(tokenizer, chats))
            for texts in _texts(place, tokenizer, chats):
                _send(theirs, texts)
        except MemoryError:
            _send(theirs, fault=f"took more than {MEMORY_BYTES >> 20:,} MiB of memory")
        except _Fault as fault:
            _send(theirs, fault=str(fault))
        except Exception as error:  # the template's own, of whatever kind
            line = f" in line {error.lineno}" if hasattr(error, "lineno") else ""
            _send(theirs, fault=f"raised {type(error).__name__}{line}: {error!s:.500}")
    os._exit(0)


def _send(theirs: Connection, value: Any = None, fault: str = "") -> None:
    theirs.send_bytes(json.dumps([fault, value]).encode())


def _texts(place: mmap.mmap, tokenizer: Any, chats: Sequence[Chat]) -> Iterator[list[str]]:
    """The texts, some at a time. ``place`` always holds the place of the chat that is under way."""
    texts: list[str] = []
    sent_s = time.monotonic()
    for number, chat in enumerate(chats):
        place[:] = number.to_bytes(_PLACE_BYTES, "little")
        texts.append(_text(tokenizer, chat))
        if len(texts[-1]) > MAX_CHARS:
            raise _Fault(f"made a text of {len(texts[-1]):,} characters")
        if time.monotonic() - sent_s > SENT_EVERY_S:
            yield texts
            texts, sent_s = [], time.monotonic()
    yield texts


def _habits(tokenizer: Any, chats: Sequence[Chat]) -> tuple[bool, bool, bool, bool, str]:
    chat, other = chats[0], {"content": "Another problem: what is 12345 + 67890?"}
    text = _text(tokenizer, chat)
    longer = next((c for c in chats if len(c) > 1), None)
    return (
        _text(tokenizer, [*chat[:-1], chat[-1] | other]) != text,
        longer is None or _text(tokenizer, [longer[0] | other, *longer[1:]]) != _text(tokenizer, longer),
        _text(tokenizer, chat, opened=False) != text,
        _text(tokenizer, chat, now=ANOTHER_DAY, seed=1) != text,
        _turn_end(tokenizer, chat),
    )


def _turn_end(tokenizer: Any, chat: Chat) -> str:
    try:
        text = _text(tokenizer, [*chat, {"role": "assistant", "content": REPLY}], opened=False)
    except Exception:  # a template of questions alone is not at fault
        return ""
    return text.rpartition(REPLY)[2] if REPLY in text else ""


class _Clock(datetime):
    stands_at = NOON

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return cls.stands_at


def _text(tokenizer: Any, chat: Chat, opened: bool = True, now: datetime = NOON, seed: int = 0) -> str:
    from transformers.utils import chat_template_utils

    vars(chat_template_utils)["datetime"] = _Clock
    _Clock.stands_at = now
    random.seed(seed)
    text: str = tokenizer.apply_chat_template(chat, add_generation_prompt=opened, tokenize=False)
    return text


def _become_nobody(theirs: Connection, parent: int) -> None:
    """Lets go of what the process got from its parent: signals, files, memory without a bound, a life of its own."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        bound = used + MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, used + MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    os.closerange(3, theirs.fileno())
    os.closerange(theirs.fileno() + 1, 1 << 16)


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Python warns of forks beside threads, since a lock may be held: the child takes none, and its end is certain."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
