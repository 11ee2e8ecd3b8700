"""A prompt, as data sets store it -> the question, and the messages that come before it."""

import re
from typing import Any, NamedTuple

from fastgrpo.data.answers import as_value, last_box, shown

History = tuple[tuple[str, str], ...]  # (role, text)

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
"""The roles that a chat template knows, by their names in data sets: ShareGPT's rows say human and gpt."""

_CHAT = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")


class Asked(NamedTuple):
    """What a row asks, and its answer; question and answer are unchecked."""

    question: Any
    answer: Any = None
    history: History = ()


def asked_of(prompt: Any) -> Asked:
    """A text, or a chat whose last message is the user's; a chat may be written as JSON.

    Raises ValueError for any other chat.
    """
    chat = _chat_of(prompt)
    if chat is None:
        return Asked(prompt)
    roles = [role for role, _ in chat]
    if not roles or roles[-1] != "user":
        raise ValueError(f"a chat must end with the user's message, got the roles {roles}")
    return Asked(chat[-1][1], history=tuple(chat[:-1]))


def conversation(messages: Any) -> Asked:
    """A chat that may end with the assistant's reply: then its answer is the reply's ``ground_truth``
    (Open-Reasoner-Zero's rows), or else what stands in the last box of its text."""
    messages = _written(messages)
    if (
        isinstance(messages, list)
        and messages
        and isinstance(messages[-1], dict)
        and _role(messages[-1]) == "assistant"
    ):
        reply = messages[-1]
        gold = reply.get("ground_truth")
        gold = gold.get("value") if isinstance(gold, dict) else gold
        answer = last_box(str(_content(reply) or "")) if gold is None else gold
        return asked_of(messages[:-1])._replace(answer=answer)
    return asked_of(messages)


def _chat_of(prompt: Any) -> list[tuple[str, str]] | None:
    """(role, text) of every message; None for what is a plain text."""
    prompt = _written(prompt)
    if isinstance(prompt, str) or not isinstance(prompt, list | dict):
        return None
    messages = [prompt] if isinstance(prompt, dict) else prompt
    if not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"a prompt must be a text or a list of messages, got {shown(prompt)}")
    chat = []
    for message in messages:
        role, content = _role(message), _content(message)
        if role is None:
            raise ValueError(f"a message's role must be system, user or assistant, got {shown(_named(message))}")
        if not isinstance(content, str):
            raise ValueError(f"the {role} message must be text, got {shown(content)}")
        chat.append((role, content))
    return chat


def _written(prompt: Any) -> Any:
    """A chat that stands in a text, as a chat; a text of another kind stays."""
    if not isinstance(prompt, str) or not _CHAT.match(prompt):
        return prompt
    value = as_value(prompt.strip())
    if not isinstance(value, list):
        raise ValueError(f"the prompt looks like a chat that was written as text, and is no JSON: {shown(prompt)}")
    return value


def _named(message: dict[str, Any]) -> Any:
    return message.get("role", message.get("from"))


def _role(message: dict[str, Any]) -> str | None:
    named = _named(message)
    return ROLES.get(named) if isinstance(named, str) else None


def _content(message: dict[str, Any]) -> Any:
    """Its text, that of a list of parts too where all are texts."""
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    return content
