"""The cluster that TF_CONFIG describes, and this process's place in it.

    task = cluster.task()       # reads the environment; needs no TensorFlow
    task.is_chief               # whether this process writes the files

TF_CONFIG is TensorFlow's convention, and what its tools set on a cluster:

    {"cluster": {"worker": ["one:2222", "two:2222"]},
     "task": {"type": "worker", "index": 0}}
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
from typing import NoReturn

from mp_loop.config import errors
from mp_loop.distributed import messages

_KINDS = ("chief", "worker")


class ClusterError(errors.UsageError):
    """TF_CONFIG is not valid, or the workers differ; the message is one line."""


class WorkerLost(RuntimeError):
    """Another worker did not start, or stopped; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One process of a cluster; every process trains.

    Attributes:
      addresses: "host:port" of all processes: first the chief, if there is one, then
        the workers.
      number: the index of this process among them. Number 0 writes the files.
    """

    addresses: tuple[str, ...]
    number: int

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files: the chief, or else worker 0."""
        return self.number == 0

    @property
    def is_on_loopback(self) -> bool:
        """Whether every process is on this machine, by addresses that say so."""
        return all(is_loopback(self.endpoint(i)[0]) for i in range(len(self.addresses)))

    def endpoint(self, number: int) -> tuple[str, int]:
        """Host and port of a process; the host of an IPv6 address has no brackets."""
        host, port = self.addresses[number].rsplit(":", 1)
        return host.strip("[]"), int(port)


def task(text: str | None = None) -> Task:
    """Reads TF_CONFIG.

    Args:
      text: its value; by default the environment's.

    Raises:
      ClusterError: it is not set, not valid JSON, or does not describe this process.
    """
    if text is None:
        text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        raise ClusterError(
            "--strategy (multi_worker) needs the environment variable TF_CONFIG, which "
            "describes the cluster and this process's place in it."
        )
    try:
        found = json.loads(text)
        workers = {kind: list(found["cluster"].get(kind, ())) for kind in _KINDS}
        kind, index = found["task"]["type"], found["task"]["index"]
        others = set(found["cluster"]) - set(_KINDS)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = messages.printable(" ".join(str(error).split()))
        raise ClusterError(
            'TF_CONFIG must be JSON of the form {"cluster": {"worker": ["host:port", '
            f'...]}}, "task": {{"type": "worker", "index": 0}}}}: {reason}.'
        ) from None
    addresses = [*workers["chief"], *workers["worker"]]
    if others:
        shown = messages.printable(", ".join(sorted(others)))
        refuse(f"cluster ({shown})", "hold chief and worker only")
    if len(workers["chief"]) > 1:
        refuse(f"chief ({len(workers['chief'])})", "be at most one process")
    for address in addresses:
        if not isinstance(address, str) or not _is_address(address):
            refuse(
                f"cluster ({messages.printable(str(address))})",
                "hold addresses of the form host:port or [IPv6]:port, with a port from "
                "1 to 65535",
            )
    if len({address.lower() for address in addresses}) < len(addresses):
        refuse("cluster", "not name an address twice")
    if kind not in _KINDS:
        shown = messages.printable(str(kind))
        refuse(f"task type ({shown})", f"be one of: {', '.join(_KINDS)}")
    if type(index) is not int or not 0 <= index < len(workers[kind]):
        count = len(workers[kind])
        requirement = f"be at least 0 and below {count}, the number of type {kind}"
        refuse(f"task index ({messages.printable(str(index))})", requirement)
    number = index if kind == "chief" else len(workers["chief"]) + index
    return Task(tuple(addresses), number)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever a name server says."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(address: str) -> bool:
    """Whether a text is host:port, with a host that can be looked up."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[1-9]\d{0,4}", port) or int(port) > 65535:
        return False
    if host.startswith("[") and host.endswith("]"):
        try:
            return ipaddress.ip_address(host[1:-1]).version == 6
        except ValueError:
            return False
    # Labels of DNS, with the underscores that some clusters have in names.
    return len(host) <= 253 and bool(
        re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", host)
    )


def refuse(what: str, requirement: str) -> NoReturn:
    """Raises ClusterError for a part of TF_CONFIG that is not valid."""
    raise ClusterError(f"TF_CONFIG's {what} must {requirement}.")
