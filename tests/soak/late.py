"""A way to Redis on which one write comes late: after its sender has given up, asked anew, and written more.

TCP does that by itself: what a closed connection had still to send is sent again for minutes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

from stream.stack.process import HOST
from tests.broker.harness import until

_ANSWERED = b"+PONG"


class LateWay:
    """Forwards connections to a Redis on loopback. `close` it when done."""

    def __init__(self, redis_url: str) -> None:
        where = urlsplit(redis_url)
        self._redis = (where.hostname, where.port)
        self._listener = socket.create_server((HOST, 0))
        self.url = f"redis://{HOST}:{self._listener.getsockname()[1]}/0"
        self._lock = threading.Lock()
        self._armed = self._cut = False
        self._late: socket.socket | None = None
        self._held = self._answers = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_next_write(self) -> None:
        """The next rows stay on the way, and from then on nothing else comes through."""
        self._armed = True

    @property
    def holds(self) -> bool:
        """Whether a write is on the way."""
        return self._cut

    def let_through(self) -> None:
        """New connections; the write that was held stays where it is."""
        self._cut = False

    def deliver(self) -> None:
        """Redis gets the write that was held, and has carried it out when this returns."""
        assert self._late is not None
        self._late.sendall(self._held + b"PING\r\n")
        until(lambda: _ANSWERED in self._answers, "Redis has done what came late")

    def close(self) -> None:
        self._listener.close()
        if self._late is not None:
            self._late.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sender, _ = self._listener.accept()
                if self._cut:
                    sender.close()
                    continue
                receiver = socket.create_connection(self._redis)
                threading.Thread(target=self._forward, args=(sender, receiver), daemon=True).start()
                threading.Thread(target=self._back, args=(receiver, sender), daemon=True).start()

    def _forward(self, sender: socket.socket, receiver: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := sender.recv(1 << 20):
                if not self._keeps(receiver, data):
                    receiver.sendall(data)
        if receiver is not self._late:
            receiver.close()

    def _keeps(self, receiver: socket.socket, data: bytes) -> bool:
        """Whether these bytes stay on the way."""
        with self._lock:
            if self._armed and b"EVALSHA" in data and b":row:" in data:
                self._armed, self._cut, self._late = False, True, receiver
            if receiver is self._late:
                self._held += data
            return receiver is self._late or self._cut

    def _back(self, receiver: socket.socket, sender: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := receiver.recv(1 << 20):
                if receiver is self._late:
                    self._answers += data
                else:
                    sender.sendall(data)
        sender.close()
