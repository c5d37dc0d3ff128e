"""The workers of a cluster meet before TensorFlow starts.

    handshake.wait_for_all(cluster.task(), flags, seconds=600)

TensorFlow itself waits for the other workers for an hour or without end, ignores
signals meanwhile and reports nothing. So the workers meet here first: within a
bounded time all of them are present and have the same flags, or the error names
the worker that is missing or differs.

The chief listens on a socket. Each worker sends one line of JSON, its number and
its flags, and waits. When all have reported, the chief answers each of them with
one line: "go", or the reason why the cluster does not start.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time

from mp_loop.distributed import cluster

_RETRY_SECONDS = 0.2
_LONGEST_LINE = 100_000
_GO = "go"


def wait_for_all(task: cluster.Task, flags: str, seconds: float) -> None:
    """Waits until every worker has started, with the same flags.

    The chief listens at its own address, where TensorFlow's server listens later.

    Args:
      task: this process.
      flags: lines that must be equal on all workers.
      seconds: how long to wait.

    Raises:
      WorkerLost: not all workers started in time.
      ClusterError: a worker has other flags, or the chief's address does not belong
        to this machine or is in use.
    """
    if len(task.addresses) == 1:
        return
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        if task.is_chief:
            _serve(task, flags, deadline, seconds, stack)
        else:
            _report(task, flags, deadline, seconds)


def _serve(
    task: cluster.Task,
    flags: str,
    deadline: float,
    seconds: float,
    stack: contextlib.ExitStack,
) -> None:
    """The chief's side: hears every worker, then answers all of them."""
    port = int(task.addresses[0].rsplit(":", 1)[1])
    try:
        server = stack.enter_context(socket.create_server(("", port)))
    except OSError as error:
        cluster.refuse(
            f"address ({task.addresses[0]})", f"be free on this machine: {error}"
        )
    connections: dict[int, socket.socket] = {}
    answer = _GO
    while len(connections) < len(task.addresses) - 1:
        try:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            line = stack.enter_context(server.accept()[0])
            line.settimeout(max(min(deadline - time.monotonic(), 5.0), 0.001))
            message = json.loads(_read_line(line))
            number, theirs = int(message["number"]), str(message["flags"])
        except TimeoutError:
            if time.monotonic() < deadline:
                continue  # not one of ours: it connected and sent nothing
            missing = set(range(1, len(task.addresses))) - set(connections)
            names = ", ".join(f"{i} ({task.addresses[i]})" for i in sorted(missing))
            raise cluster.WorkerLost(
                f"worker {names} did not start within {seconds:g} seconds."
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not one of ours
        connections[number] = line
        if theirs != flags and answer == _GO:
            answer = f"worker {number} has {_first_difference(flags, theirs)}."
    for line in connections.values():
        with contextlib.suppress(OSError):
            line.sendall(answer.encode() + b"\n")
            line.recv(1)  # the worker closes first, which frees the port at once
    if answer != _GO:
        raise cluster.ClusterError(answer)


def _report(task: cluster.Task, flags: str, deadline: float, seconds: float) -> None:
    """A worker's side: reports to the chief and waits for the answer."""
    host, port = task.addresses[0].rsplit(":", 1)
    message = json.dumps({"number": task.number, "flags": flags}).encode() + b"\n"
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), 5.0) as line:
                line.sendall(message)
                line.settimeout(max(deadline - time.monotonic(), 0.001))
                answer = _read_line(line)
        except OSError as error:  # not started yet; its name may not resolve either
            reason = str(error)
            time.sleep(_RETRY_SECONDS)
            continue
        if answer == _GO:
            return
        if answer:
            raise cluster.ClusterError(answer)
        time.sleep(_RETRY_SECONDS)  # the chief stopped; it may start again
    raise cluster.WorkerLost(
        f"the chief ({task.addresses[0]}) did not start within {seconds:g} seconds: "
        f"{reason}."
    )


def _read_line(line: socket.socket) -> str:
    """Reads up to a newline; returns "" if the other side closes before it."""
    received = b""
    while not received.endswith(b"\n") and len(received) < _LONGEST_LINE:
        some = line.recv(4096)
        if not some:
            return ""
        received += some
    return received.decode(errors="replace").strip()


def _first_difference(ours: str, theirs: str) -> str:
    mine, other = set(ours.splitlines()), set(theirs.splitlines())
    return (
        f"other flags than the chief: {', '.join(sorted(other - mine)) or 'fewer'} "
        f"instead of {', '.join(sorted(mine - other)) or 'none'}"
    )
