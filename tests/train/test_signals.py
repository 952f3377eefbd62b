from __future__ import annotations

import os
import signal

import pytest

from tunerun.train import signals
from tunerun.train.signals import stop_requests


def test_the_same_request_passed_on_twice_is_one_request() -> None:
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal is signal.SIGTERM


def test_a_later_signal_does_what_it_always_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_REQUEST_SECONDS", -1.0)
    with stop_requests() as request, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal is signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stop_requests():
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before
