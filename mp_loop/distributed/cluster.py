"""The cluster that TF_CONFIG describes, and this process's place in it.

    task = cluster.task()       # reads the environment; needs no TensorFlow
    task.is_chief               # whether this process writes the files

TF_CONFIG is TensorFlow's convention, and what its tools set on a cluster:

    {"cluster": {"worker": ["one:2222", "two:2222"]},
     "task": {"type": "worker", "index": 0}}
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import NoReturn

from mp_loop.config import errors

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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(
            'TF_CONFIG must be JSON of the form {"cluster": {"worker": ["host:port", '
            f'...]}}, "task": {{"type": "worker", "index": 0}}}}: {reason}.'
        ) from None
    addresses = [*workers["chief"], *workers["worker"]]
    if others:
        refuse(f"cluster ({', '.join(sorted(others))})", "hold chief and worker only")
    if len(workers["chief"]) > 1:
        refuse(f"chief ({len(workers['chief'])})", "be at most one process")
    for address in addresses:
        if not isinstance(address, str) or not re.fullmatch(r"\S+:\d+", address):
            refuse(f"cluster ({address})", "hold addresses of the form host:port")
    if len(set(addresses)) < len(addresses):
        refuse("cluster", "not name an address twice")
    if kind not in _KINDS:
        refuse(f"task type ({kind})", f"be one of: {', '.join(_KINDS)}")
    if type(index) is not int or not 0 <= index < len(workers[kind]):
        count = len(workers[kind])
        requirement = f"be at least 0 and below {count}, the number of type {kind}"
        refuse(f"task index ({index})", requirement)
    number = index if kind == "chief" else len(workers["chief"]) + index
    return Task(tuple(addresses), number)


def refuse(what: str, requirement: str) -> NoReturn:
    """Raises ClusterError for a part of TF_CONFIG that is not valid."""
    raise ClusterError(f"TF_CONFIG's {what} must {requirement}.")
