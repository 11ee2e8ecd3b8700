"""The command ``fastgrpo``."""

import sys

USAGE = """usage: fastgrpo COMMAND ...

  train [--ranks N] [RECIPE] [--section.field value ...]   train on this machine; `fastgrpo train --help` lists settings
  evaluate MODEL [--suite justrl|simplerl|prorl] ...       draw and judge benchmarks the way a paper did
  report RUN                                               make report.html of a run, also while it goes
  recipes [PART OF A NAME]                                 list the recipes that come with fastgrpo
"""


def main() -> int:
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if command == "train":
        return _train(arguments)
    if command == "evaluate":
        from fastgrpo.evaluate import main as evaluate

        return evaluate(arguments)
    if command == "report":
        from fastgrpo.report.__main__ import main as report

        report(arguments)
        return 0
    if command == "recipes":
        return _recipes(arguments)
    asked = command in ("-h", "--help")
    print(USAGE if asked or not command else f"fastgrpo: no command {command!r}\n\n{USAGE}", end="")
    return 0 if asked else 2


def _train(arguments: list[str]) -> int:
    from fastgrpo.ranks.launch import default_num_ranks, launch

    num_ranks = None
    if arguments[:1] == ["--ranks"]:
        if len(arguments) < 2 or not arguments[1].isdigit() or int(arguments[1]) < 1:
            print(f"fastgrpo: --ranks needs a number of at least 1, got {' '.join(arguments[1:2]) or 'nothing'}")
            return 2
        num_ranks, arguments = int(arguments[1]), arguments[2:]
    return launch(arguments, num_ranks or default_num_ranks())


def _recipes(arguments: list[str]) -> int:
    """Name, first line, source and cost of the package's recipes, or of those whose name has the part that is given."""
    import signal

    from fastgrpo.recipe import find_recipe, load_recipe, recipe_names

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader may have seen enough
    for name in recipe_names():
        if arguments and arguments[0] not in name:
            continue
        try:
            recipe = load_recipe(find_recipe(name))
        except ValueError as error:
            print(f"fastgrpo: {error}", file=sys.stderr)
            return 2
        print(f"{name}\n    {recipe.about}\n    {recipe.source} · {recipe.cost}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
