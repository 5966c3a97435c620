"""Stopping early without losing anything."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable


class Interrupted(Exception):
    """Training stopped early with a checkpoint on disk; the same command continues it."""


class StopSignal:
    """Within the block, notices SIGTERM, Ctrl-C and the end of the time limit; `reason` says which, in words.

    name: of what is stopped; with it the user is told at once on stderr, for a step may take seconds.
    The time limit counts from when this is made, which may be before the block.
    """

    impatient = 2.0  # seconds after which a second Ctrl-C stops at once; launchers repeat the first one sooner

    def __init__(self, time_limit: float | None, name: str = ""):
        self.name = name
        self.end = None if time_limit is None else time.perf_counter() + time_limit
        self.limit, self.signal, self.noticed, self.before = time_limit, "", 0.0, {}

    @property
    def reason(self) -> str:
        """Why to stop now; empty while there is no reason."""
        if not self.signal and self.end is not None and time.perf_counter() >= self.end:
            return f"time limit of {self.limit:g} s reached"
        return self.signal

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._notice)
        return self

    def _notice(self, number, frame):
        if not self.signal:
            self.signal, self.noticed = f"{signal.Signals(number).name} received", time.perf_counter()
            if self.name:  # not print: the signal may have come in the middle of one
                text = f"{self.name}: {self.signal}; stopping with a checkpoint after this batch ...\n"
                with contextlib.suppress(OSError):  # a terminal that was closed
                    os.write(2, text.encode())
        elif number == signal.SIGINT and time.perf_counter() - self.noticed > self.impatient:
            raise KeyboardInterrupt

    def __exit__(self, *error):
        for number, handler in self.before.items():
            _restore(number, handler)


@contextlib.contextmanager
def sigterm_raises(error: Callable[..., BaseException], *arguments):
    """Within the block SIGTERM raises `error(*arguments)`, so that what is open is closed and the user is told.

    In a thread other than the main one, where signals do not arrive, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise error(*arguments)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        _restore(signal.SIGTERM, before)


def _restore(number: int, handler) -> None:
    """Put a handler back; one that Python did not set, of a C library, it cannot (None): then the default."""
    signal.signal(number, signal.SIG_DFL if handler is None else handler)
