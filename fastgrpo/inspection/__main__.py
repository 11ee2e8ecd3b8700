"""``fastgrpo inspect RECIPE``, ``fastgrpo inspect MODEL DATA``: what a run would begin with, and what it can learn."""

import sys
from collections.abc import Sequence

from fastgrpo.command_line import exit_codes, run_command
from fastgrpo.command_line.system_errors import in_words
from fastgrpo.inspection.options import parse


def main(arguments: Sequence[str]) -> int:
    """Inspects. Returns the exit code, of ``fastgrpo.command_line.exit_codes``: 0 also where nothing can be learnt."""
    try:
        options = parse(arguments)
        from fastgrpo.inspection.draw import Stopped  # brings torch, which --help does not need
        from fastgrpo.inspection.inspect import inspect
        from fastgrpo.rewards import RewardError
    except ValueError as error:
        return _say(f"{error}", exit_codes.REFUSED)
    try:
        inspect(options)
    except ValueError as error:
        return _say(f"{error}", exit_codes.REFUSED)
    except Stopped as stopped:
        return _say(f"{stopped}", exit_codes.of_signal(stopped.number))
    except RewardError as error:
        return _say(f"the reward cannot go on: {error}", exit_codes.FAILED)
    except BrokenPipeError:
        raise  # nobody reads it any more
    except OSError as error:  # as a full disk is
        return _say(f"stopped: {in_words(error)}", exit_codes.FAILED)
    return exit_codes.DONE


def _say(text: str, code: int) -> int:
    print(f"fastgrpo: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
