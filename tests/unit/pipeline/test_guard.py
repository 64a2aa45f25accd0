"""The guard's counting and jumping, and the watchdog's words."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.guard import Guard, Watchdog


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


def test_the_watchdog_names_where_it_hangs() -> None:
    said: list[str] = []
    heard = threading.Event()

    def report(line: str) -> None:
        said.append(line)
        heard.set()

    def here_it_hangs() -> None:
        assert heard.wait(30)

    with Watchdog(0.05, report) as watchdog:
        watchdog.beat("in the test")
        here_it_hangs()
    assert "while in the test" in said[0] and "here_it_hangs" in said[0]
