"""One line of JSON from somebody who may be a stranger: bounded, or nothing.

line.sendall(messages.encode({"number": 1}))
messages.parse(received)            # {"number": 1}, or {} if it is no such line
messages.read_line(line, deadline)  # b"" if it is not there in time
"""

from __future__ import annotations

import json
import socket
import time

from mp_loop.config import json_values

LONGEST = 100_000  # bytes
_SHOWN = 300


def encode(message: json_values.Object) -> bytes:
    """Returns a line."""
    return json.dumps(message).encode() + b"\n"


def parse(line: bytes) -> dict[str, json_values.Json]:
    """Returns the object in a line; an empty one if there is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_line(line: socket.socket, deadline: float) -> bytes:
    """Reads up to a newline.

    Args:
      line: the connection.
      deadline: of the whole line, by `time.monotonic`.

    Returns:
      The line; b"" if the other side closes before its end, or it is too long.

    Raises:
      OSError: the connection is lost, or the deadline has passed.
    """
    received = b""
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        line.settimeout(left)
        some = line.recv(4096)
        received += some
        if not some or len(received) > LONGEST:
            return b""
    return received


def printable(text: str) -> str:
    """Text as a terminal may see it: no control characters, not too much."""
    shown = "".join(c if c.isprintable() else "?" for c in text[: _SHOWN + 1])
    return shown if len(text) <= _SHOWN else f"{shown[:_SHOWN]}..."
