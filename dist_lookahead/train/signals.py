"""Stopping on SIGINT and SIGTERM, also while the main thread waits in a collective.

Python runs signal handlers between two bytecodes of the main thread, so not while that thread is blocked in
C++. But the interpreter writes the signal's number to a wake-up file descriptor at once; a thread reads it
from there.
"""

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS = 5.0  # seconds that `on_expire` may take: it may want a lock that the blocked main thread holds
_LEAVE = 0  # the byte that ends the thread; no signal has this number


class StopRequest:
    """While it is entered, SIGINT and SIGTERM ask for a stop instead of ending the process.

    The first of them sets `signal`. From then on there are `grace` seconds to get where one can stop, and
    to call `done` or leave the context. After that the process ends with status 128 + signal, whatever its
    main thread is doing; no `finally` clause and no exit handler runs. Further signals change nothing:
    torchrun passes on to each agent what the terminal may have sent it already.

    Python handles signals in the main thread only. Entered in another thread this does nothing, and
    `signal` stays None. Code that blocks without releasing Python's global lock is not interrupted; torch's
    collectives release it.

    Args:
        grace: seconds from the first signal to the end; less than the 30 after which torchrun kills.
        on_expire: called with the signal's number just before that end, from another thread, for 5 seconds
            at most. The place to say where the last checkpoint is.

    Raises:
        ValueError: if `grace` is negative.

    Example:
        >>> with StopRequest(grace=20.0, on_expire=lambda signum: print("too late")) as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     while stop.signal is None:  # in training: asked at each sync
        ...         pass
        ...     stop.done()  # and now save a checkpoint, without haste
        >>> stop.signal
        2
    """

    def __init__(self, *, grace: float, on_expire: Callable[[int], None]) -> None:
        if grace < 0:
            raise ValueError(f"grace must be a number of seconds, 0 or more; got {grace}")
        self.signal: int | None = None
        self._grace = grace
        self._on_expire = on_expire
        self._clock: threading.Timer | None = None
        self._done = False
        self._entered = False

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._entered = True
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)  # a signal handler must not wait
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._handlers_before = {signum: signal.signal(signum, _leave_it_to_the_thread) for signum in STOPPING}
        self._thread = threading.Thread(target=self._watch, name="stop request", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if not self._entered:
            return
        self._entered = False
        for signum, handler in self._handlers_before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._sender.send(bytes([_LEAVE]))
        self._thread.join()
        self.done()
        self._sender.close()
        self._receiver.close()

    def done(self) -> None:
        """Stop the clock for good: what is left to do may take as long as it needs; later signals change nothing.

        To be called before the last checkpoint is saved, also by an agent that others have told of their signal: its
        own may arrive while it is saving.
        """
        self._done = True
        if self._clock is not None:
            self._clock.cancel()

    def _watch(self) -> None:
        # Any signal with a Python handler arrives here; DataLoader has one for SIGCHLD.
        while (received := self._receiver.recv(1)[0]) != _LEAVE:
            if received in STOPPING and self.signal is None:
                self._clock = _clock(self._grace, self._end, received)
                # Either this sees `done`, or `done` sees the clock; one cancelled before its start does nothing.
                if not self._done:
                    self._clock.start()
                self.signal = received

    def _end(self, signum: int) -> None:
        status = 128 + signum
        _clock(LAST_WORDS, os._exit, status).start()
        try:
            self._on_expire(signum)
            sys.stdout.flush()
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)


def _leave_it_to_the_thread(signum: int, frame: FrameType | None) -> None:
    """Do nothing: without a Python handler, nothing would be written to the wake-up descriptor."""


def _clock(seconds: float, action: Callable[[int], object], argument: int) -> threading.Timer:
    clock = threading.Timer(seconds, action, (argument,))
    clock.daemon = True
    return clock


def reset_in_worker(worker_id: int) -> None:
    """Undo in a forked DataLoader worker what it inherits from a `StopRequest`; a `worker_init_fn`.

    A signal that reached the worker would otherwise be written to its parent's wake-up descriptor. SIGTERM
    ends the worker again, as DataLoader needs it. Only DataLoader should send it: torchrun signals an
    agent's whole process group, and an agent whose workers die cannot train on to the next sync. So the
    worker leaves that group. It does not outlive its agent: torch's workers look after their parent every 5
    seconds.

    Args:
        worker_id: DataLoader's number of the worker.
    """
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
