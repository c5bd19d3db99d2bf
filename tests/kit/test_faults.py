"""Failure points, and the clock that a test shifts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from market.kit.clock import clock, utc_now
from market.kit.config import Faults as FaultsConfig
from market.kit.faults import Faults, InjectedFault

CRASHING = """
import asyncio, sys
from market.kit.faults import Faults
async def main():
    await Faults(sys.argv[1]).fire_if_armed("here")
    print("continued", flush=True)
asyncio.run(main())
"""


async def test_a_failure_point_that_is_not_armed_does_nothing(tmp_path: Path) -> None:
    await Faults(tmp_path).fire_if_armed("here")
    Faults(tmp_path).crash_if_armed("here")


async def test_an_armed_failure_point_fires_once(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    (tmp_path / "here").write_text("fail")
    with pytest.raises(InjectedFault):
        await faults.fire_if_armed("here")
    await faults.fire_if_armed("here")
    assert (tmp_path / "here.done").exists()


async def test_a_pause_waits(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("pause 0.2")
    before = time.monotonic()
    await Faults(tmp_path).fire_if_armed("here")
    assert time.monotonic() - before >= 0.19


def test_a_crash_kills_one_process_only(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("crash")
    first = subprocess.run([sys.executable, "-c", CRASHING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL
    assert "continued" not in first.stdout
    second = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (second.returncode, second.stdout) == (0, "continued\n")


def test_the_clock_is_shifted_by_the_configured_offset() -> None:
    assert clock(None) is utc_now
    shifted = clock(FaultsConfig(clock_offset_seconds=-3600))
    before = utc_now()
    hour_ago = shifted()
    assert before <= hour_ago + timedelta(hours=1) <= utc_now()


async def test_only_one_of_two_concurrent_passages_triggers_the_fault(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("fail")
    outcomes = await asyncio.gather(*(Faults(tmp_path).fire_if_armed("here") for _ in range(5)), return_exceptions=True)
    assert [type(o) for o in outcomes].count(InjectedFault) == 1
