"""Steps of the wall clock are seen; time that merely passes is none."""

import pytest
import trio.testing

from globalstore.leases.wall_clock import ClockWatch


@pytest.mark.parametrize("step_s", [-3600.0, 0.75, 86400.0])
async def test_a_step_is_seen_once(mock_clock: trio.testing.MockClock, step_s: float) -> None:
    wall_us = 1_700_000_000_000_000
    watch = ClockWatch(lambda: wall_us)
    mock_clock.jump(10)
    wall_us += 10_100_000
    assert watch.step_s() == 0
    mock_clock.jump(1)
    wall_us += 1_000_000 + round(step_s * 1_000_000)
    assert watch.step_s() == pytest.approx(step_s)
    assert watch.step_s() == 0
