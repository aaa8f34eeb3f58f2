"""The queue of one device: in order of arrival, except that runs give way to calls.

A *call* is a tool call, which a client waits for. A *run* is a discovery or a training in the
background, which takes minutes or hours. One job at a time holds the device:

- Calls are served in the order in which they came, and so are runs.
- A run offers the device to the waiting calls after each of its batches, and goes on when they are
  done. So a call waits for at most one batch of a run.
- When `MAX_CALLS_BETWEEN_BATCHES` calls have passed a waiting run, it is served next, so that a
  stream of calls cannot stop a run for ever.

A call never gives way, because two calls that are at work together would need twice the memory.
"""

from __future__ import annotations

import threading
from collections import deque

MAX_CALLS_BETWEEN_BATCHES = 8  # that may pass a waiting run


class Place:
    """The place of one job in the queue of a device.

    Attributes:
        description: what the job does, shown to the jobs that wait for the device.
        gives_way: whether the job is a run, which gives way to calls between its batches.
        turn: set while the job has the device.
    """

    def __init__(self, description: str, *, gives_way: bool = False) -> None:
        self.description = description
        self.gives_way = gives_way
        self.turn = threading.Event()


class DeviceQueue:
    """Decides which job has a device. All its methods return at once and may be called anywhere."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holder: Place | None = None
        self._calls: deque[Place] = deque()
        self._runs: deque[Place] = deque()
        self._n_passed = 0  # calls that were served while the first run waited

    @property
    def holder_name(self) -> str:
        """What the job does that has the device."""
        holder = self._holder
        return "another call" if holder is None else holder.description

    @property
    def n_waiting_calls(self) -> int:
        """The number of calls that wait for the device."""
        return len(self._calls)

    def enter(self, place: Place) -> None:
        """Join the queue; `place.turn` is set when the job has the device."""
        with self._guard:
            (self._runs if place.gives_way else self._calls).append(place)
            self._serve_next()

    def give_way(self, place: Place) -> bool:
        """Hand the device of a run to the calls that wait for it; the run is the next run then.

        Returns:
            Whether the device was handed over. The run must wait for `place.turn` then.
        """
        with self._guard:
            if not self._calls or self._holder is not place or not place.gives_way:
                return False
            place.turn.clear()
            self._holder = None
            self._runs.appendleft(place)
            self._serve_next()
            return True

    def leave(self, place: Place) -> None:
        """Leave the queue, whether the job has the device, waits for it, or has left already."""
        with self._guard:
            if self._holder is place:
                self._holder = None
            for waiting in (self._calls, self._runs):
                if place in waiting:
                    waiting.remove(place)
            self._serve_next()

    def _serve_next(self) -> None:
        """Give the device to the job whose turn it is, if it is free."""
        if self._holder is not None:
            return
        runs_wait_long = bool(self._runs) and self._n_passed >= MAX_CALLS_BETWEEN_BATCHES
        if self._calls and not runs_wait_long:
            self._n_passed = self._n_passed + 1 if self._runs else 0
            self._holder = self._calls.popleft()
        elif self._runs:
            self._n_passed = 0
            self._holder = self._runs.popleft()
        if self._holder is not None:
            self._holder.turn.set()
