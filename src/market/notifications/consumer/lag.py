"""Observes the lag of all partitions, and whether this process makes progress on those that are assigned to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from prometheus_client import Gauge

from market.kit.process import logs
from market.kit.process.health import Health
from market.notifications import metrics
from market.notifications.consumer.topic import PartitionOffsets

log = logs.get_logger("consumer")

_INTERVAL_SECONDS = 5.0


class _Unread(NamedTuple):
    """A partition with unread messages.

    position: the next offset to read
    since: when the position last changed, in seconds of the observer's clock
    """

    position: int
    since: float


class LagObserver:
    """Compares the end of each partition with the committed offset and with this process's position in it.

    read_offsets: returns the offsets of each partition of the topic; blocks
    read_positions: returns the next offset to read of each partition that is assigned to this process and not paused
    stalled_after_seconds: how long a partition with unread messages may make no progress
    health: reports the process as unready while a partition is stalled. None: nothing is reported
    lag_metric, stalled_metric: gauges with the label `partition`
    clock: returns seconds, like time.monotonic
    """

    def __init__(
        self,
        read_offsets: Callable[[], Mapping[int, PartitionOffsets]],
        read_positions: Callable[[], Mapping[int, int]],
        health: Health | None,
        *,
        stalled_after_seconds: float,
        lag_metric: Gauge = metrics.LAG,
        stalled_metric: Gauge = metrics.STALLED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_offsets = read_offsets
        self._read_positions = read_positions
        self._health = health
        self._stalled_after_seconds = stalled_after_seconds
        self._clock = clock
        self._lag_metric = lag_metric
        self._stalled_metric = stalled_metric
        # By partition. Contains only partitions with unread messages.
        self._unread: dict[int, _Unread] = {}
        self._stalled: dict[int, str] = {}
        # The lag at the last observation, by partition.
        self.lag: dict[int, int] = {}
        # Tests create several observers in one process, which share the metrics.
        lag_metric.clear()
        stalled_metric.clear()

    async def observe(self) -> float:
        """Update the metrics and the readiness. Return the seconds until the next call. Raises KafkaException."""
        # The ends are read before the positions (in `_find_stalled`), so that messages that arrive in between do not
        # count as unread.
        offsets = await asyncio.to_thread(self._read_offsets)
        for partition in self.lag.keys() - offsets.keys():
            self._lag_metric.remove(str(partition))
        self.lag = {partition: found.lag for partition, found in offsets.items()}
        for partition, lag in self.lag.items():
            self._lag_metric.labels(str(partition)).set(lag)
        self._find_stalled(offsets)
        return _INTERVAL_SECONDS

    def _find_stalled(self, offsets: Mapping[int, PartitionOffsets]) -> None:
        now = self._clock()
        positions = self._read_positions()
        unread = {p: position for p, position in positions.items() if p in offsets and position < offsets[p].high}
        self._unread = {
            p: last if (last := self._unread.get(p)) and last.position == position else _Unread(position, now)
            for p, position in unread.items()
        }
        stalled = {p for p, last in self._unread.items() if now - last.since >= self._stalled_after_seconds}
        for partition in stalled - self._stalled.keys():
            position = unread[partition]
            log.error(
                "assigned partition is stalled", partition=partition, offset=position, high=offsets[partition].high
            )
            self._stalled_metric.labels(str(partition)).set(1)
            self._stalled[partition] = (
                f"has made no progress for {self._stalled_after_seconds:g} s at offset {position}"
            )
        for partition in self._stalled.keys() - stalled:
            log.info("partition is no longer stalled", partition=partition)
            del self._stalled[partition]
            with suppress(KeyError):
                self._stalled_metric.remove(str(partition))
        if self._health is None:
            return
        reasons = [f"partition {partition} {reason}" for partition, reason in sorted(self._stalled.items())]
        if reasons:
            self._health.set_unready("consumption", "; ".join(reasons)[:500])
        else:
            self._health.set_ready("consumption")
