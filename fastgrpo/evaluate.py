"""``fastgrpo evaluate MODEL [--suite justrl|simplerl|prorl] [--benchmarks ...]``; ``python -m fastgrpo.evaluate``."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import tyro

from fastgrpo.command_line import exit_codes, ignore_lost_output, run_command
from fastgrpo.evaluation.settings import Settings, validate


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates. Returns the exit code, of ``fastgrpo.command_line.exit_codes``."""
    from fastgrpo.evaluation.ranks import RankFailed
    from fastgrpo.ranks.signals import Interrupted

    settings = parse(sys.argv[1:] if arguments is None else list(arguments))
    try:
        if settings.compare:
            _compare(settings)
        else:
            validate(settings)
            _evaluate(settings)
    except ValueError as error:
        return _say(f"{error}", exit_codes.REFUSED)
    except Interrupted as interrupted:
        return _say(f"{interrupted}", exit_codes.SAVED)
    except RankFailed as error:
        return _say(f"stopped: {error}", exit_codes.FAILED)
    except OSError as error:  # as a full disk is
        if settings.compare and isinstance(error, BrokenPipeError):
            raise  # nobody reads the comparison any more
        return _say(f"stopped: {error}; when that is mended, the same command goes on from here", exit_codes.FAILED)
    return exit_codes.DONE


def parse(arguments: Sequence[str]) -> Settings:
    """Exits on --help and unknown flags."""
    return tyro.cli(
        Settings,
        prog="fastgrpo evaluate",
        description="Evaluate a model the way its paper did. An evaluation that was stopped goes on. Dashes are "
        "accepted where underscores are shown.",
        args=list(arguments),
        use_underscores=True,
    )


def _evaluate(settings: Settings) -> None:
    from fastgrpo.evaluation.as_trained import as_trained
    from fastgrpo.evaluation.plan import make_plan
    from fastgrpo.run.hub import require_found

    if not settings.dry_run:
        ignore_lost_output()
        require_found({settings.model: "MODEL", settings.verifier_model: "--verifier_model"}, {})
    if settings.as_trained:
        settings = as_trained(settings)
    plan = make_plan(settings)
    for planned in plan.benchmarks:
        print(f"{planned.name}: {len(planned.benchmark.problems)} problems of {planned.benchmark.source}")
    for note in plan.notes:
        print(f"note: {note}")
    if settings.dry_run:
        for planned in plan.benchmarks:
            print(f"{planned.name}: {', '.join(f'{k} {v!r}' for k, v in asdict(planned.protocol).items())}")
        then = f", then by {settings.verifier_model} what that rejects" if settings.verifier_model else ""
        print(f"{plan.num_responses} responses, judged by {settings.rule or plan.suite.rule}{then}")
        return
    from fastgrpo.evaluation.stages import evaluate

    evaluate(settings, plan, Path(settings.out) / settings.folder_name)


def _compare(settings: Settings) -> None:
    """Writes into the folder --name inside --out if one is named, and prints in any case."""
    from fastgrpo.evaluation.compare import compare, write_comparison
    from fastgrpo.evaluation.records import read_evaluation

    evaluations = [read_evaluation(Path(folder)) for folder in settings.compare]
    print(compare(evaluations))
    if settings.name:
        folder = Path(settings.out) / settings.name
        folder.mkdir(parents=True, exist_ok=True)
        write_comparison(evaluations, folder)
        print(f"  {folder}")


def _say(text: str, code: int) -> int:
    print(f"fastgrpo: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    run_command(main)
