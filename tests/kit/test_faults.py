from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from market.kit.config import Faults as FaultsConfig
from market.kit.faults import Faults, InjectedFault, clock, utc_now

CRASHING = """
import asyncio, sys
from market.kit.faults import Faults
async def main():
    await Faults(sys.argv[1]).reach("here")
    print("went on", flush=True)
asyncio.run(main())
"""


async def test_a_point_that_is_not_armed_does_nothing(tmp_path: Path) -> None:
    await Faults(tmp_path).reach("here")
    Faults(tmp_path).crash_if_armed("here")


async def test_an_armed_point_fires_once(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    (tmp_path / "here").write_text("fail")
    with pytest.raises(InjectedFault):
        await faults.reach("here")
    await faults.reach("here")
    assert (tmp_path / "here.done").exists()


async def test_a_pause_waits(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("pause 0.2")
    before = time.monotonic()
    await Faults(tmp_path).reach("here")
    assert time.monotonic() - before >= 0.19


def test_a_crash_stops_the_process_dead_and_only_the_first(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("crash")
    first = subprocess.run([sys.executable, "-c", CRASHING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL
    assert "went on" not in first.stdout
    second = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (second.returncode, second.stdout) == (0, "went on\n")


def test_a_wrong_clock_is_wrong_by_the_offset() -> None:
    assert clock(None) is utc_now
    late = clock(FaultsConfig(clock_offset_seconds=-3600))
    before = utc_now()
    hour_ago = late()
    assert before <= hour_ago + timedelta(hours=1) <= utc_now()


async def test_only_one_of_two_racers_gets_the_fault(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("fail")
    outcomes = await asyncio.gather(*(Faults(tmp_path).reach("here") for _ in range(5)), return_exceptions=True)
    assert [type(o) for o in outcomes].count(InjectedFault) == 1
