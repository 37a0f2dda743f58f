"""Connections of a library that does not close them by itself."""

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

# Of a socket, by which it is known from a later one with the same number, and its number in this process.
Sockets = dict[int, int]


def opened_by(connect: Callable[[], object]) -> Sockets:
    """Return the connected sockets that come to be while something connects.

    Example:
        >>> ends = []
        >>> len(opened_by(lambda: ends.extend(socket.socketpair())))
        2
        >>> [end.close() for end in ends]
        [None, None]
    """
    before = _connected()
    connect()
    return {inode: number for inode, number in _connected().items() if inode not in before}


def shut_down(sockets: Sockets) -> None:
    """End the traffic of those that are still there: the other sides see them closed.

    Example:
        >>> ends = []
        >>> shut_down(opened_by(lambda: ends.extend(socket.socketpair())))
        >>> ends[0].recv(1)
        b''
        >>> [end.close() for end in ends]
        [None, None]
    """
    there = _connected()
    for inode in sockets.keys() & there.keys():
        with contextlib.suppress(OSError), _at(there[inode]) as end:  # the other side may have closed it meanwhile
            end.shutdown(socket.SHUT_RDWR)


def _connected() -> Sockets:
    found = {}
    for entry in list(Path("/dev/fd").iterdir()):
        number = int(entry.name)
        with contextlib.suppress(OSError):  # of the listing itself, and of what is no connected socket
            status = os.fstat(number)
            if stat.S_ISSOCK(status.st_mode):
                with _at(number) as end:
                    end.getpeername()
                found[status.st_ino] = number
    return found


def _at(number: int) -> socket.socket:
    return socket.socket(fileno=os.dup(number))
