"""Which worker of which cluster this process is, as TF_CONFIG tells.

    task = cluster.task()       # reads the environment; needs no TensorFlow
    cluster.call_roll(task, flags, seconds=600)

TF_CONFIG is TensorFlow's convention, and what its tools set on a cluster:

    {"cluster": {"worker": ["one:2222", "two:2222"]},
     "task": {"type": "worker", "index": 0}}

TensorFlow itself waits for the others for an hour or for ever, deaf to signals
and without a word. So the roll is called first: within bounded time all are
there with the same flags, or it is said who is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import time
from typing import NoReturn

_KINDS = ("chief", "worker")
_RETRY_SECONDS = 0.2
_LONGEST_LINE = 100_000


class ClusterError(ValueError):
    """TF_CONFIG or the workers do not fit together; the message is one line."""


class WorkerLost(RuntimeError):
    """Another worker did not come, or stopped; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One process of a cluster; all train.

    Attributes:
      addresses: "host:port" of all processes: the chief's, if there is one, then
        the workers'.
      number: its place among them. 0 is the one that writes.
    """

    addresses: tuple[str, ...]
    number: int

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files: the chief, or else worker 0."""
        return self.number == 0


def task(text: str | None = None) -> Task:
    """Reads TF_CONFIG.

    Args:
      text: its value; default: the environment's.

    Raises:
      ClusterError: it is not set, not JSON, or names no place for this process.
    """
    if text is None:
        text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        raise ClusterError(
            "--strategy (multi_worker) needs the environment variable TF_CONFIG: "
            "the cluster, and which worker of it this process is."
        )
    try:
        said = json.loads(text)
        workers = {kind: list(said["cluster"].get(kind, ())) for kind in _KINDS}
        kind, index = said["task"]["type"], said["task"]["index"]
        others = set(said["cluster"]) - set(_KINDS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(
            'TF_CONFIG must be JSON of the form {"cluster": {"worker": ["host:port", '
            f'...]}}, "task": {{"type": "worker", "index": 0}}}}: {reason}.'
        ) from None
    addresses = [*workers["chief"], *workers["worker"]]
    if others:
        _refuse(f"cluster ({', '.join(sorted(others))})", "hold chief and worker only")
    if len(workers["chief"]) > 1:
        _refuse(f"chief ({len(workers['chief'])})", "be one process at most")
    for address in addresses:
        if not isinstance(address, str) or not re.fullmatch(r"\S+:\d+", address):
            _refuse(f"cluster ({address})", "hold addresses of the form host:port")
    if len(set(addresses)) < len(addresses):
        _refuse("cluster", "name no address twice")
    if kind not in _KINDS:
        _refuse(f"task type ({kind})", f"be one of: {', '.join(_KINDS)}")
    if type(index) is not int or not 0 <= index < len(workers[kind]):
        law = f"be among the {len(workers[kind])} of type {kind} in its cluster"
        _refuse(f"task index ({index})", law)
    number = index if kind == "chief" else len(workers["chief"]) + index
    return Task(tuple(addresses), number)


def call_roll(task: Task, flags: str, seconds: float) -> None:
    """Waits until every worker is there, with the same flags.

    The chief listens at its own address, which TensorFlow's server takes over.

    Args:
      task: this process.
      flags: lines that must be equal on all workers.
      seconds: how long to wait.

    Raises:
      WorkerLost: not all came in time.
      ClusterError: a worker has other flags, or the chief's address is not this
        machine's, or in use.
    """
    if len(task.addresses) == 1:
        return
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        if task.is_chief:
            _answer_all(task, flags, deadline, seconds, stack)
        else:
            _report(task, flags, deadline, seconds)


def _answer_all(
    task: Task, flags: str, deadline: float, seconds: float, stack: contextlib.ExitStack
) -> None:
    """The chief's part: hears every worker, then answers them all."""
    port = int(task.addresses[0].rsplit(":", 1)[1])
    try:
        server = stack.enter_context(socket.create_server(("", port)))
    except OSError as error:
        _refuse(f"address ({task.addresses[0]})", f"be free on this machine: {error}")
    there: dict[int, socket.socket] = {}
    answer = "go"
    while len(there) < len(task.addresses) - 1:
        try:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            line = stack.enter_context(server.accept()[0])
            line.settimeout(max(min(deadline - time.monotonic(), 5.0), 0.001))
            said = json.loads(_read_line(line))
            number, theirs = int(said["number"]), str(said["flags"])
        except TimeoutError:
            if time.monotonic() < deadline:
                continue  # a stranger, who said nothing
            missing = set(range(1, len(task.addresses))) - set(there)
            names = ", ".join(f"{i} ({task.addresses[i]})" for i in sorted(missing))
            raise WorkerLost(
                f"worker {names} did not come within {seconds:g} seconds."
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a stranger
        there[number] = line
        if theirs != flags and answer == "go":
            answer = f"worker {number} has {_first_difference(flags, theirs)}."
    for line in there.values():
        with contextlib.suppress(OSError):
            line.sendall(answer.encode() + b"\n")
            line.recv(1)  # the worker hangs up first, which frees the port at once
    if answer != "go":
        raise ClusterError(answer)


def _report(task: Task, flags: str, deadline: float, seconds: float) -> None:
    """A worker's part: tells the chief, and waits for the answer."""
    host, port = task.addresses[0].rsplit(":", 1)
    said = json.dumps({"number": task.number, "flags": flags}).encode() + b"\n"
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), 5.0) as line:
                line.sendall(said)
                line.settimeout(max(deadline - time.monotonic(), 0.001))
                answer = _read_line(line)
        except OSError as error:  # not there yet; not even its name, perhaps
            reason = str(error)
            time.sleep(_RETRY_SECONDS)
            continue
        if answer == "go":
            return
        if answer:
            raise ClusterError(answer)
        time.sleep(_RETRY_SECONDS)  # the chief stopped, and may come again
    raise WorkerLost(
        f"the chief ({task.addresses[0]}) did not start within {seconds:g} seconds: "
        f"{reason}."
    )


def _read_line(line: socket.socket) -> str:
    """Reads up to a newline; what came before the other side hung up, if it did."""
    said = b""
    while not said.endswith(b"\n") and len(said) < _LONGEST_LINE:
        some = line.recv(4096)
        if not some:
            return ""
        said += some
    return said.decode(errors="replace").strip()


def _first_difference(ours: str, theirs: str) -> str:
    mine, other = set(ours.splitlines()), set(theirs.splitlines())
    return (
        f"other flags than the chief: {', '.join(sorted(other - mine)) or 'fewer'} "
        f"instead of {', '.join(sorted(mine - other)) or 'none'}"
    )


def _refuse(what: str, law: str) -> NoReturn:
    raise ClusterError(f"TF_CONFIG's {what} must {law}.")
