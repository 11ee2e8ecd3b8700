"""Signals that ask for the end are noted, and only a person's second Ctrl-C ends the process at once."""

import contextlib
import signal

import pytest

from fastgrpo.command_line.ending import ANNOUNCING
from fastgrpo.ranks import signals
from fastgrpo.ranks.signals import Interrupted, signals_noted, stop_if_noted


def test_signals_are_noted_in_their_order_and_the_handlers_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with signals_noted() as noted:
        stop_if_noted(noted)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert noted == [signal.SIGTERM, signal.SIGTERM]
        with pytest.raises(Interrupted, match="stopped by SIGTERM; the same command goes on"):
            stop_if_noted(noted)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_ctrl_c_soon_after_a_signal_is_a_launchers_answer(first, monkeypatch):
    monkeypatch.setattr(signals, "ANSWER_S", 3600.0)
    with signals_noted() as noted:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
    assert noted == [first, signal.SIGINT]


def test_a_later_ctrl_c_ends_the_process_and_a_later_sigterm_does_not(monkeypatch):
    ended = []
    monkeypatch.setattr(signals, "end_in_a_line", lambda number, frame: ended.append(number))
    monkeypatch.setattr(signals, "ANSWER_S", -1.0)
    with signals_noted() as noted:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert noted == [signal.SIGINT, signal.SIGTERM] and ended == []
        signal.raise_signal(signal.SIGINT)
    assert ended == [signal.SIGINT]


def test_every_announced_end_is_noted_but_what_was_ignored_or_is_a_recipes_own(monkeypatch):
    own = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    signal.signal(signal.SIGUSR1, lambda *_: own.append("recipe"))
    with signals_noted() as noted:
        for number in ANNOUNCING:
            signal.raise_signal(number)
    assert set(noted) == set(ANNOUNCING) - {signal.SIGHUP, signal.SIGUSR1} and own == ["recipe"]


def test_after_a_save_further_signals_change_nothing():
    with contextlib.suppress(Interrupted), signals_noted() as noted:
        signal.raise_signal(signal.SIGTERM)
        stop_if_noted(noted)
    signal.raise_signal(signal.SIGTERM)
    assert noted == [signal.SIGTERM, signal.SIGTERM]
