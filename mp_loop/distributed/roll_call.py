"""The chief's side of the handshake: hears every worker, and answers all of them.

    with roll_call.RollCall(server, count=3, flags=flags, key=key) as call:
        if call.hear(deadline):
            call.answer("go", deadline)

Anybody can connect. A caller gets a nonce, and is heard if one line comes in time with
the number of a worker and the proof that it knows the cluster's secret; every other
caller is dropped without a word. Callers do not wait for each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import selectors
import socket
import time

from mp_loop.distributed import messages, secret

_SECONDS_TO_REPORT = 5.0
_MOST_STRANGERS = 100  # of those who have not reported, the latest are kept


@dataclasses.dataclass(eq=False)
class _Caller:
    line: socket.socket
    nonce: str
    expires: float
    received: bytes = b""
    number: int = 0  # 0: has not reported
    their_nonce: str = ""
    flags: str = ""


class RollCall:
    """The calls of the workers at one socket."""

    def __init__(self, server: socket.socket, count: int, flags: str, key: bytes):
        """Nobody is heard yet.

        Args:
          server: a listening socket; the caller closes it.
          count: of all processes; workers have the numbers from 1.
          flags: of the chief.
          key: the cluster's secret.
        """
        self._count, self._flags, self._key = count, flags, key
        self._server = server
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)
        self._callers: list[_Caller] = []  # in the order of their calls
        self._came: set[int] = set()

    def __enter__(self) -> RollCall:
        return self

    def __exit__(self, *_error: object) -> None:
        for caller in [*self._callers]:
            self._drop(caller)
        self._selector.close()

    @property
    def missing(self) -> list[int]:
        """The numbers of the workers that have not reported, or have gone."""
        present = {caller.number for caller in self._callers}
        return [number for number in range(1, self._count) if number not in present]

    @property
    def absent(self) -> list[int]:
        """Who is to blame for missing workers: those that never came, or who left."""
        missing = self.missing
        return [n for n in missing if n not in self._came] or missing

    @property
    def difference(self) -> str:
        """Says which worker has other flags than the chief, or ""."""
        for caller in sorted(self._callers, key=lambda caller: caller.number):
            if caller.number and caller.flags != self._flags:
                said = _first_difference(self._flags, caller.flags)
                return f"worker {caller.number} has {said}."
        return ""

    def hear(self, deadline: float) -> bool:
        """Hears callers until all workers have reported; False if the time is up."""
        while self.missing:
            now = time.monotonic()
            if now >= deadline:
                return False
            strangers = [caller for caller in self._callers if not caller.number]
            for caller in strangers:
                if caller.expires <= now:
                    self._drop(caller)
            ends = [deadline, *(c.expires for c in strangers if c.expires > now)]
            for ready, _ in self._selector.select(min(ends) - now):
                if ready.data is None:
                    self._accept()
                else:
                    self._listen(ready.data)
        return True

    def answer(self, text: str, deadline: float) -> None:
        """Answers all workers, and waits until they have closed their side.

        Who closes first keeps the port: TensorFlow needs the chief's.
        """
        workers = [caller for caller in self._callers if caller.number]
        for caller in workers:
            left = max(min(deadline - time.monotonic(), _SECONDS_TO_REPORT), 0.1)
            with contextlib.suppress(OSError):
                caller.line.settimeout(left)
                caller.line.sendall(self._signed(caller, text))
        for caller in workers:
            with contextlib.suppress(OSError):
                caller.line.recv(1)

    def _accept(self) -> None:
        try:
            line, _ = self._server.accept()
        except OSError:  # It has gone already.
            return
        line.setblocking(False)
        expires = time.monotonic() + _SECONDS_TO_REPORT
        caller = _Caller(line, secret.nonce(), expires)
        self._callers.append(caller)
        self._selector.register(line, selectors.EVENT_READ, caller)
        strangers = [caller for caller in self._callers if not caller.number]
        if len(strangers) > _MOST_STRANGERS:
            self._drop(strangers[0])
        self._send(caller, messages.encode({"nonce": caller.nonce}))

    def _listen(self, caller: _Caller) -> None:
        """Takes what a caller sends; a worker that has reported only goes away."""
        try:
            some = caller.line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            some = b""
        caller.received += some
        if not some or caller.number or len(caller.received) > messages.LONGEST:
            self._drop(caller)
        elif caller.received.endswith(b"\n"):
            self._report(caller, messages.parse(caller.received))

    def _report(self, caller: _Caller, message: dict) -> None:
        """Takes a worker's report; drops a caller whose message is none."""
        number, flags = message.get("number"), message.get("flags")
        nonce = message.get("nonce")
        known = type(number) is int and 1 <= number < self._count
        if not known or not isinstance(flags, str) or not isinstance(nonce, str):
            return self._drop(caller)
        parts = (caller.nonce, nonce, str(number), flags)
        if not secret.is_proof(self._key, message.get("proof"), *parts):
            return self._drop(caller)
        caller.their_nonce = nonce
        if number not in self.missing:
            twice = f"worker {number} has reported twice: two processes have its place."
            self._send(caller, self._signed(caller, twice))
            return self._drop(caller)
        caller.number, caller.flags = number, flags
        self._came.add(number)

    def _signed(self, caller: _Caller, text: str) -> bytes:
        """An answer that only this caller takes for the chief's."""
        proof = secret.proof(self._key, caller.nonce, caller.their_nonce, "chief", text)
        return messages.encode({"answer": text, "proof": proof})

    def _send(self, caller: _Caller, line: bytes) -> None:
        """Sends a short line at once, or drops the caller."""
        try:
            caller.line.sendall(line)
        except OSError:
            self._drop(caller)

    def _drop(self, caller: _Caller) -> None:
        if caller in self._callers:
            self._callers.remove(caller)
            self._selector.unregister(caller.line)
            caller.line.close()


def _first_difference(ours: str, theirs: str) -> str:
    mine, other = set(ours.splitlines()), set(theirs.splitlines())
    added = messages.printable(", ".join(sorted(other - mine)))
    gone = messages.printable(", ".join(sorted(mine - other)))
    return f"other flags than the chief: {added or 'fewer'} instead of {gone or 'none'}"
