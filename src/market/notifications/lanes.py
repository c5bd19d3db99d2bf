"""Many mails under way at once, and the messages of one order always one after the other.

A lane holds the messages of one key, in order. Whoever is free takes the next lane and handles its
first message; a message that must wait for its next attempt holds up its own lane only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Protocol

from market.kit.process import logs
from market.notifications.domain import MailServerAway, Message
from market.notifications.progress import Progress, Room
from market.notifications.service import Work

log = logs.get_logger("lanes")

Handle = Callable[[Work], Awaitable[float | None]]


class Gate(Protocol):
    async def present(self) -> None: ...


class Lane:
    """The messages of one key of one partition."""

    __slots__ = ("dropped", "finished", "key", "progress", "timer", "works")

    def __init__(self, key: Hashable, progress: Progress) -> None:
        self.key = key
        self.progress = progress
        self.works: deque[Work] = deque()
        self.timer: asyncio.TimerHandle | None = None
        # While its first message is being handled.
        self.finished: asyncio.Event | None = None
        self.dropped = False


class Lanes:
    """Owns the messages that are read and not yet done. Of one event loop."""

    def __init__(self, handle: Handle, gate: Gate, room: Room, at_once: int) -> None:
        self._handle = handle
        self._gate = gate
        self._room = room
        self._lanes: dict[Hashable, Lane] = {}
        self._ready: asyncio.Queue[Lane] = asyncio.Queue()
        self._workers = [asyncio.get_running_loop().create_task(self._work()) for _ in range(at_once)]

    def add(self, messages: Iterable[tuple[Progress, Message]]) -> None:
        """Takes over messages for which room was taken."""
        for progress, message in messages:
            # Of two assignments of a partition, each has lanes of its own.
            key = (id(progress), message.offset if message.key is None else message.key)
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = Lane(key, progress)
                self._ready.put_nowait(lane)
            lane.works.append(Work(message))

    async def release(self, progresses: Iterable[Progress], seconds: float) -> None:
        """Lets go of what has not begun, and waits for what is under way, `seconds` at most."""
        gone = set(map(id, progresses))
        under_way = []
        for lane in [lane for lane in self._lanes.values() if id(lane.progress) in gone]:
            if lane.finished is not None:
                under_way.append(lane.finished)
            self._drop(lane)
        if under_way and seconds > 0:
            waiting = [asyncio.ensure_future(finished.wait()) for finished in under_way]
            _, late = await asyncio.wait(waiting, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                log.warning("mails under way took too long; they may be repeated", mails=len(late))

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _drop(self, lane: Lane) -> None:
        lane.dropped = True
        del self._lanes[lane.key]
        if lane.timer is not None:
            lane.timer.cancel()
        # The one under way is given back when it ends.
        keep = lane.works.popleft() if lane.finished is not None else None
        for work in lane.works:
            self._room.give(work.message.size)
        lane.works.clear()
        if keep is not None:
            lane.works.append(keep)

    async def _work(self) -> None:
        while True:
            lane = await self._ready.get()
            await self._gate.present()
            if not lane.dropped:
                await self._first(lane)

    async def _first(self, lane: Lane) -> None:
        work = lane.works[0]
        lane.finished = asyncio.Event()
        pause: float | None = 0.0
        try:
            pause = await self._handle(work)
        except MailServerAway:
            pass
        except Exception:
            log.exception("handling failed")
            pause = 1.0
        finally:
            lane.finished.set()
            lane.finished = None
        if pause is None:
            lane.works.popleft()
            lane.progress.done(work.message.offset)
            self._room.give(work.message.size)
        elif lane.dropped:
            self._room.give(work.message.size)
        if lane.dropped:
            return
        if not lane.works:
            del self._lanes[lane.key]
        elif pause:
            lane.timer = asyncio.get_running_loop().call_later(pause, self._ready.put_nowait, lane)
        else:
            self._ready.put_nowait(lane)
