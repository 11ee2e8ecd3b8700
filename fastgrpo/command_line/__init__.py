"""What the commands share: how they begin and end, exit codes, the name that was meant, paths as people write them."""

from fastgrpo.command_line import exit_codes
from fastgrpo.command_line.command import run_command
from fastgrpo.command_line.near import did_you_mean
from fastgrpo.command_line.paths import expanded
from fastgrpo.command_line.streams import ignore_lost_output

__all__ = ["did_you_mean", "exit_codes", "expanded", "ignore_lost_output", "run_command"]
