"""``python -m bench [--results DIR] SUBJECT [options]``; without a subject, the list of them."""

import ast
import importlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

EXIT_USER_ERROR = 2
USAGE = """\
python -m bench [--results DIR] SUBJECT [options]; SUBJECT --help lists them

  --results DIR      results go to DIR/<device>/SUBJECT.json, in place of bench/results/<device>/
"""


@cache
def subjects() -> dict[str, str]:
    """The name and the first line of every module and folder here that defines ``main``. None of them is imported."""
    found = {}
    folder = Path(__file__).parent
    for file in (*folder.glob("*.py"), *folder.glob("*/__init__.py")):
        name = file.parent.name if file.name == "__init__.py" else file.stem
        tree = ast.parse(file.read_text(encoding="utf-8"))
        defines_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if defines_main and not name.startswith("_"):
            found[name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return dict(sorted(found.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subject's ``main(argv) -> int``. Returns its exit code, or 2 for an unknown subject."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--results"]:
        if len(arguments) == 1:
            print("bench: --results needs a folder, and then a subject", file=sys.stderr)
            return EXIT_USER_ERROR
        _keep_results_in(Path(arguments[1]))
        arguments = arguments[2:]
    known = subjects()
    listing = "\n".join(f"  {name:<18} {line}" for name, line in known.items())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n{listing}")
        return 0
    if arguments[0] not in known:
        print(f"bench: no subject {arguments[0]!r}, there are\n\n{listing}", file=sys.stderr)
        return EXIT_USER_ERROR
    return importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:])


def _keep_results_in(folder: Path) -> None:
    from bench import harness  # imports torch, which the list of subjects does not need

    harness.RESULTS = folder.absolute()  # child processes work in another folder


if __name__ == "__main__":
    sys.exit(main())
