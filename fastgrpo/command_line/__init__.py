"""What the commands share: how they begin and end, exit codes, and the name that was meant."""

from fastgrpo.command_line import exit_codes
from fastgrpo.command_line.command import run_command
from fastgrpo.command_line.near import did_you_mean
from fastgrpo.command_line.streams import ignore_lost_output

__all__ = ["did_you_mean", "exit_codes", "ignore_lost_output", "run_command"]
