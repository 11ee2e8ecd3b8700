"""The steps of a GPU machine: every subject understands its arguments, and rows are those that there are."""

import argparse
import importlib
import subprocess
import sys
from collections import Counter

from bench.gpu import command
from bench.gpu.processes import ROOT
from bench.gpu.steps import steps
from tests.bench.test_gpu_runner import subject


class _Parsed(Exception):
    """A subject has understood its arguments."""


def print_steps_that_their_subjects_refuse() -> None:
    """Calls each subject as on CUDA until it has understood its arguments and found its rows."""
    from bench import attention, harness, kernel_subjects, memory, real_shape, tokens_per_s

    def chosen(*arguments) -> None:
        raise _Parsed(harness.chosen(*arguments))

    for module in (attention, kernel_subjects, memory, real_shape, tokens_per_s):
        assert module.chosen is harness.chosen
        module.chosen = chosen
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser, argv):
        options = parse_args(parser, argv)
        if not getattr(options, "only", None):
            raise _Parsed
        return options

    argparse.ArgumentParser.parse_args = parse
    renamed = [subject("old row", "linear_grpo", "--device", "cuda", "--only", "nosuch")]
    renamed.append(subject("old launch", "kernel_launches", "--device", "cuda", "--only", "nosuch"))
    renamed.append(subject("old option", "machine", "--device", "cuda", "--nosuch"))
    for step in [*steps(16), *renamed]:
        if not step.is_subject and "bench" not in step.arguments:
            continue
        called = step.arguments if step.is_subject else step.arguments[step.arguments.index("bench") + 1 :]
        name, *arguments = called[2:] if called[0] == "--results" else called
        listing = ["--list"] if name == "kernel_launches" and "--only" in arguments else []
        try:
            code = importlib.import_module(f"bench.{name}").main([*arguments, *listing])
            assert code == 0 and listing
        except _Parsed:
            pass
        except (SystemExit, ImportError, AssertionError):
            print("refused:", step.name)


def test_every_step_is_understood_by_its_subject_and_names_rows_that_there_are():
    # In a process of its own: here the kernels must be imported for the interpreter.
    code = "from tests.bench.test_gpu_steps import *; print_steps_that_their_subjects_refuse()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert refused == ["refused: old row", "refused: old launch", "refused: old option"], done.stderr


def test_names_of_steps_are_unique_and_no_group_has_one():
    counted = Counter([*(step.name for step in steps(16)), *command.GROUPS])
    assert [name for name, count in counted.items() if count > 1] == []


def test_the_first_group_fits_one_call():
    assert sum(step.limit_s for step in steps(16) if step.group == "first") <= 540
