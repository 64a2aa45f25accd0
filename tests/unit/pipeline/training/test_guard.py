"""The guard's counting and jumping, and the watchdog's words."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.training.guard import WINDOW, Guard, Watchdog


def test_bad_steps_in_a_row_give_their_stretch() -> None:
    guard = Guard(3)
    told = [guard.look(8 * i, 8, bad) for i, bad in enumerate([True, True, False, True, True, True])]
    assert told == [None] * 5 + [(24, 48)]
    assert (guard.skip, guard.total, guard.bad) == ([(24, 48)], 5, 0)
    assert [guard.jump(position) for position in (16, 24, 40, 48)] == [16, 48, 48, 48]


def test_a_second_stretch_right_after_the_first_is_not_the_samples_fault() -> None:
    guard = Guard(1)
    assert guard.look(0, 8, True) == (0, 8)
    with pytest.raises(UserError, match=r"lower training\.learning_rate"):
        guard.look(8, 8, True)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=6), st.integers(0, 80))
def test_a_jump_ends_outside_of_all_stretches(pairs: list[tuple[int, int]], position: int) -> None:
    stretches = [(start, start + length) for start, length in pairs]
    after = Guard(1, stretches).jump(position)
    assert after >= position
    assert not any(start <= after < end for start, end in stretches)
    assert all(any(start <= between < end for start, end in stretches) for between in range(position, after))


def test_state_survives_and_known_stretches_stay() -> None:
    first = Guard(2, [(80, 96)])
    for position in (0, 8):
        first.look(position, 8, True)
    second = Guard(2, [(160, 168)])
    second.load(first.state())
    assert second.skip == [(0, 16), (80, 96), (160, 168)]
    assert second.total == 2


def test_bad_steps_in_a_row_survive_a_resume() -> None:
    first, second = Guard(3), Guard(3)
    assert first.good_until(16) == 16
    for position in (16, 24):
        first.look(position, 8, True)
    second.load(first.state())
    assert second.good_until(32) == 16
    assert second.look(32, 8, True) == first.look(32, 8, True) == (16, 40)
    assert second.state() == first.state()


def test_spikes_are_counted_against_the_running_median() -> None:
    first = Guard(3)
    assert [first.spike(norm) for norm in [1000.0, *[2.0] * (WINDOW - 1)]] == [None] * WINDOW  # nothing to judge by yet
    assert (first.spike(20.0), first.spike(20.1), first.spikes) == (None, 2.0, 1)
    second = Guard(3)
    second.load(first.state())
    for norm in (21.0, 1.0, 20.0):
        assert second.spike(norm) == first.spike(norm)
    assert first.spikes == second.spikes == 2


def test_the_watchdog_names_where_it_hangs() -> None:
    said: list[str] = []
    heard = threading.Event()

    def report(line: str) -> None:
        said.append(line)
        if "in the test" in line:  # a slow machine may hang before
            heard.set()

    def here_it_hangs() -> None:
        watchdog.beat("in the test")
        assert heard.wait(30)

    with Watchdog(0.05, report) as watchdog:
        here_it_hangs()
    assert "while in the test" in said[-1] and "here_it_hangs" in said[-1]
