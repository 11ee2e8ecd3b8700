"""The plan of an evaluation: each benchmark with its problems and its protocol, and the facts that identify it."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastgrpo.data.identity import Identity, other_than
from fastgrpo.data.instructions import SIMPLERL_TEMPLATES
from fastgrpo.evaluation.as_trained import run_of
from fastgrpo.evaluation.benchmarks import Benchmark, count_note, find_benchmark, load_benchmark
from fastgrpo.evaluation.settings import Settings
from fastgrpo.evaluation.suites import SUITES, Protocol, Suite


@dataclass(frozen=True)
class Planned:
    """A benchmark and how it is asked."""

    benchmark: Benchmark
    protocol: Protocol

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def keys(self) -> list[tuple[int, int]]:
        """(problem, sample) of every response; the samples of a problem follow each other."""
        return [(p.problem, s) for p in self.benchmark.problems for s in range(self.protocol.samples_per_problem)]


@dataclass(frozen=True)
class Plan:
    suite: Suite
    benchmarks: list[Planned]
    notes: list[str]

    @property
    def num_responses(self) -> int:
        return sum(len(b.keys) for b in self.benchmarks)


def make_plan(settings: Settings) -> Plan:
    """Reads the benchmarks. Raises ValueError for missing files, and if the suite wants a template from the user."""
    suite = SUITES[settings.suite]
    benchmarks: list[Planned] = []
    notes = list(suite.notes)
    for name in settings.benchmarks or suite.protocols:
        name, source = find_benchmark(name, settings.data)
        _require_new(name, [b.name for b in benchmarks])
        benchmark = load_benchmark(name, source, settings.problems)
        benchmarks.append(Planned(benchmark, _protocol(settings, suite.protocols.get(name, suite.other))))
        notes += filter(None, [count_note(benchmark, settings.problems)])
    if suite.verifier_model and not (settings.verifier_model or settings.rule):
        notes.append(
            f"judged by the rule alone: the paper asks {suite.verifier_model} about what the rule rejects "
            f"(--verifier_model {suite.verifier_model})"
        )
    if not (settings.as_trained or settings.template) and run_of(settings.model):
        notes.append(
            "asked in the suite's words, and judged by its rule: --as_trained takes those of the checkpoint's run"
        )
    if settings.problems:
        notes.append(f"only the first {settings.problems} problems of each benchmark")
    return Plan(suite, benchmarks, notes)


def _require_new(name: str, others: list[str]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or ".rank" in name:
        raise ValueError(f"a benchmark's name becomes a file's, and {name!r} cannot: rename its file")
    if name in others:
        raise ValueError(f"two benchmarks are called {name}: rename a file, or evaluate them one by one")


def _protocol(settings: Settings, protocol: Protocol) -> Protocol:
    given = {
        "samples_per_problem": settings.samples,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_response_tokens": settings.max_response_tokens,
    }
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if settings.template:
        changed["template"] = SIMPLERL_TEMPLATES.get(settings.template, settings.template)
        changed["chat_template"] = settings.chat_template
    protocol = replace(protocol, **changed)
    if not protocol.template:
        raise ValueError(
            f"the suite {settings.suite} asks in the words that a model was trained with: give --template simple "
            f"(SimpleRL-Zoo's Llama-3.1-8B, Mistral-7B, Qwen2.5-0.5B and 1.5B), --template boxed (its other models), "
            f"or a text with {{problem}}"
        )
    if "{problem}" not in protocol.template:
        raise ValueError(f"--template needs {{problem}} where the problem goes, got {protocol.template!r}")
    return protocol


def facts_of(settings: Settings, plan: Plan, prompts: Mapping[str, Identity]) -> dict[str, Any]:
    """The content of ``evaluation.json``: everything that a response and its verdict depend on. ``prompts`` identifies
    the encoded prompts of each benchmark."""
    return {
        "name": settings.folder_name,
        "model": settings.model,
        "model_fingerprint": fingerprint(settings.model),
        "suite": settings.suite,
        "source": plan.suite.source,
        "seed": settings.seed,
        "engine": "vllm servers" if settings.servers else settings.engine,
        "dtype": settings.dtype,
        "stop_token_ids": list(settings.stop_token_ids),
        "extrapolate": settings.extrapolate,
        "rule": settings.rule or plan.suite.rule,
        "rule_fingerprint": _fingerprint_of_rule(settings.rule),
        "verifier_model": settings.verifier_model,
        "compass_without_question": settings.compass_without_question,
        "benchmarks": {
            b.name: {
                "source": b.benchmark.source,
                "num_problems": len(b.benchmark.problems),
                "prompts": prompts[b.name],
                **asdict(b.protocol),
            }
            for b in plan.benchmarks
        },
        "notes": plan.notes,
    }


def _fingerprint_of_rule(rule: str) -> str:
    """The fingerprint of the file that a verifier is in; empty for a verifier of a module."""
    path = Path(rule.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.suffix == ".py" and path.is_file() else ""


SAMPLED_BYTES = 1 << 16


def fingerprint(model: str) -> str:
    """A hash of names, sizes and both ends of a model folder's files: it changes if other weights take their place.

    Empty for a hub id.
    """
    folder = Path(model)
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLED_BYTES))
            file.seek(max(0, path.stat().st_size - SAMPLED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


FREE_TO_CHANGE = {"name", "source", "notes"}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The facts that differ so that an evaluation cannot go on, one line each.

    A verifier model may be added, since it only judges existing responses. A benchmark's file may have moved, if its
    content is the same.
    """
    found = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in now
        if key not in FREE_TO_CHANGE | {"benchmarks"} and before.get(key, "") != now[key] and not _added(key, before)
    ]
    old, new = before.get("benchmarks", {}), now["benchmarks"]
    found += [f"{name}: {'there' if name in old else 'not there'} before" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        found += [
            f"{name}, {key}: {old[name].get(key)!r} there, {value!r} now"
            for key, value in new[name].items()
            if key not in FREE_TO_CHANGE | {"prompts"} and old[name].get(key) != value
        ]
        if prompts := old[name].get("prompts"):  # an older evaluation has not noted them
            found += [f"{name}: {d}" for d in filter(None, [other_than(prompts, new[name]["prompts"])])]
    return found


def _added(key: str, before: dict[str, Any]) -> bool:
    return key in ("verifier_model", "compass_without_question") and not before.get("verifier_model")
