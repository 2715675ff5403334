"""Signals at a step boundary: the first is noted, the second stops, and the handlers come back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from cascade_kd.errors import CascadeKDError, UserError
from cascade_kd.interrupt import DeferredInterrupt, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def arrived() -> Iterator[list[int]]:
    """Handlers of our own, so that a failing test ends no process; gives the signals that reached them."""
    reached: list[int] = []
    before = {signum: signal.signal(signum, lambda number, _: reached.append(number)) for signum in SIGNALS}
    yield reached
    for signum, handler in before.items():
        signal.signal(signum, handler)


def handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in SIGNALS]


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_noted_and_the_block_goes_on(signum: int, arrived: list[int]) -> None:
    before, steps = handlers(), 0
    with DeferredInterrupt() as interrupt:
        assert interrupt.signum is None
        assert handlers() != before
        for _ in range(3):
            if steps == 1:
                signal.raise_signal(signum)
            steps += 1
    assert interrupt.signum == signum
    assert steps == 3
    assert arrived == []
    assert handlers() == before


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_stops_at_once(first: int, second: int, arrived: list[int]) -> None:
    before, reached = handlers(), []
    interrupt = DeferredInterrupt()

    def block() -> None:
        with interrupt:
            signal.raise_signal(first)
            reached.append("between")
            signal.raise_signal(second)
            reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["between"]
    assert interrupt.signum == first
    assert handlers() == before
    assert arrived == []


def test_handlers_come_back_after_an_error_and_signals_reach_them_again(arrived: list[int]) -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), DeferredInterrupt():
        raise ZeroDivisionError
    assert handlers() == before
    signal.raise_signal(signal.SIGINT)
    assert arrived == [signal.SIGINT]


def test_without_a_signal_nothing_is_noted() -> None:
    with DeferredInterrupt() as interrupt:
        pass
    assert interrupt.signum is None


def test_each_block_starts_anew() -> None:
    for _ in range(3):
        with DeferredInterrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
        assert interrupt.signum == signal.SIGINT


def test_outside_the_main_thread_nothing_is_touched(arrived: list[int]) -> None:
    before = handlers()
    inside, leave = threading.Event(), threading.Event()
    noted: list[int | None] = []

    def work() -> None:
        with DeferredInterrupt() as interrupt:
            inside.set()
            assert leave.wait(10)
        noted.append(interrupt.signum)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    assert handlers() == before
    signal.raise_signal(signal.SIGTERM)
    leave.set()
    thread.join(10)
    assert noted == [None]
    assert arrived == [signal.SIGTERM]
    assert handlers() == before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_the_shells(signum: int, code: int) -> None:
    error = Interrupted(signum, "stopped at step 3")
    assert isinstance(error, CascadeKDError)
    assert not isinstance(error, UserError)
    assert error.exit_code == code
    assert str(error) == "stopped at step 3"
