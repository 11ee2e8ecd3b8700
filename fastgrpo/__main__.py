"""The command ``fastgrpo``."""

import sys
from typing import NoReturn

from fastgrpo.command_line import did_you_mean, exit_codes, run_command

USAGE = """usage: fastgrpo COMMAND ...

  train [RECIPE] [--ranks N] [--section.field value ...]   train on this machine; `fastgrpo train --help` lists settings
  inspect RECIPE, or MODEL DATA [--reward NAME] ...        show prompts, responses and verdicts, and what can be learnt
  evaluate MODEL [--suite justrl|simplerl|prorl] ...       draw and judge benchmarks the way a paper did
  serve RECIPE [--port N] [--section.field value ...]      start a vLLM server with which a run samples
  report RUN                                               make report.html of a run, also while it goes
  track RUN --track wandb|tensorboard|trackio|mlflow ...   send a run that is over, or goes on, to trackers
  recipes [PART OF A NAME]                                 list the recipes that come with fastgrpo, or show one
  help [COMMAND], --version
"""


def main() -> NoReturn:
    run_command(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    command, arguments = (arguments[0] if arguments else ""), arguments[1:]
    if command == "help" and arguments:
        command, arguments = arguments[0], ["--help"]
    if command in COMMANDS:
        return COMMANDS[command](arguments)
    if command == "--version":
        return _version()
    if command in ("help", "-h", "--help"):
        print(USAGE, end="")
        return exit_codes.DONE
    complaint = f"fastgrpo: no command {command!r}{did_you_mean(command, [*COMMANDS, 'help'])}\n\n" if command else ""
    print(f"{complaint}{USAGE}", end="", file=sys.stderr)
    return exit_codes.REFUSED


def _train(arguments: list[str]) -> int:
    from fastgrpo.train import command

    return command(arguments)


def _inspect(arguments: list[str]) -> int:
    from fastgrpo.inspection.__main__ import main as inspect

    return inspect(arguments)


def _evaluate(arguments: list[str]) -> int:
    from fastgrpo.evaluate import main as evaluate

    return evaluate(arguments)


def _serve(arguments: list[str]) -> int:
    from fastgrpo.serve import main as serve

    return serve(arguments)


def _report(arguments: list[str]) -> int:
    from fastgrpo.report.__main__ import main as report

    return report(arguments)


def _track(arguments: list[str]) -> int:
    from fastgrpo.track.__main__ import main as track

    return track(arguments)


def _recipes(arguments: list[str]) -> int:
    import argparse

    from fastgrpo.recipe.listing import print_recipes

    parser = argparse.ArgumentParser("fastgrpo recipes", description="List the recipes that come with fastgrpo.")
    parser.add_argument("part", metavar="PART", nargs="?", default="", help="of a name; a whole name shows its recipe")
    part = parser.parse_args(arguments).part
    try:
        print_recipes(part)
    except ValueError as error:
        print(f"fastgrpo: {error}", file=sys.stderr)
        return exit_codes.REFUSED
    return exit_codes.DONE


def _version() -> int:
    from fastgrpo import __version__

    print(f"fastgrpo {__version__}")
    return exit_codes.DONE


COMMANDS = {
    "train": _train,
    "inspect": _inspect,
    "evaluate": _evaluate,
    "report": _report,
    "track": _track,
    "recipes": _recipes,
    "serve": _serve,
}


if __name__ == "__main__":
    main()
