"""The workers of a cluster meet before TensorFlow starts.

    handshake.wait_for_all(cluster.task(), flags, seconds=600)

TensorFlow itself waits for the other workers for an hour or without end, ignores
signals meanwhile and reports nothing. So the workers meet here first: within a
bounded time all of them are present and have the same flags, or the error names
the worker that is missing or differs.

The chief listens at its own address. A worker that connects gets a nonce, sends its
number and its flags with the proof that it knows the cluster's secret, and waits. When
all have reported, the chief answers each of them, with a proof of its own: "go", or
the reason why the cluster does not start.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time

from mp_loop.distributed import cluster, messages, roll_call, secret

_RETRY_SECONDS = 0.2
_SECONDS_TO_CONNECT = 5.0
_GO = "go"

logger = logging.getLogger(__name__)


def wait_for_all(task: cluster.Task, flags: str, seconds: float) -> None:
    """Waits until every worker has started, with the same flags.

    The chief listens at its own address, where TensorFlow's server listens later.

    Args:
      task: this process.
      flags: lines that must be equal on all workers.
      seconds: how long to wait.

    Raises:
      WorkerLost: not all workers started in time.
      ClusterError: a worker has other flags or another's place, the chief's address
        does not belong to this machine or is in use, or machines share no secret.
    """
    if len(task.addresses) == 1:
        return
    key = secret.read()
    if not key:
        _refuse_machines_without_secret(task)
    deadline = time.monotonic() + seconds
    if task.is_chief:
        _serve(task, flags, key, deadline, seconds)
    else:
        _report(task, flags, key, deadline, seconds)


def _refuse_machines_without_secret(task: cluster.Task) -> None:
    """Without a secret only this machine's own processes may call."""
    if not task.is_on_loopback:
        raise cluster.ClusterError(
            f"{secret.TOKEN} (or {secret.TOKEN_FILE}) must be set on every machine, to "
            "the same secret: TF_CONFIG names more than this machine, and anybody "
            "could pose as a worker. Make one with: openssl rand -hex 32"
        )
    if task.is_chief:
        logger.warning(
            "%s is not set: any process on this machine can pose as a worker.",
            secret.TOKEN,
        )


def _serve(
    task: cluster.Task, flags: str, key: bytes, deadline: float, seconds: float
) -> None:
    """The chief's side."""
    with (
        contextlib.closing(_listen(task)) as server,
        roll_call.RollCall(server, len(task.addresses), flags, key) as call,
    ):
        if not call.hear(deadline):
            names = ", ".join(f"{i} ({task.addresses[i]})" for i in call.absent)
            raise cluster.WorkerLost(
                f"worker {names} did not start within {seconds:g} seconds."
            )
        answer = call.difference or _GO
        call.answer(answer, deadline)
    if answer != _GO:
        raise cluster.ClusterError(answer)


def _listen(task: cluster.Task) -> socket.socket:
    """Opens the chief's socket at the address that TF_CONFIG names."""
    host, port = task.endpoint(0)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        if cluster.is_loopback(address[0]) and not task.is_on_loopback:
            # Some systems give a machine's own name a loopback address, at which the
            # other machines cannot call.
            return socket.create_server(("", port))
        return socket.create_server(address, family=family)
    except OSError as error:
        cluster.refuse(
            f"address ({task.addresses[0]})", f"be free on this machine: {error}"
        )


def _report(
    task: cluster.Task, flags: str, key: bytes, deadline: float, seconds: float
) -> None:
    """A worker's side: reports to the chief and waits for the answer."""
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = _call(task, flags, key, deadline)
        except OSError as error:  # not started yet; its name may not resolve either
            answer, reason = "", str(error)
        if answer == _GO:
            return
        if answer:
            raise cluster.ClusterError(answer)
        time.sleep(_RETRY_SECONDS)  # the chief stopped, or it is not the chief
    raise cluster.WorkerLost(
        f"the chief ({task.addresses[0]}) did not start within {seconds:g} seconds: "
        f"{reason}."
    )


def _call(task: cluster.Task, flags: str, key: bytes, deadline: float) -> str:
    """Calls the chief once; returns its answer, "" from anybody else."""
    soon = min(deadline, time.monotonic() + _SECONDS_TO_CONNECT)
    with socket.create_connection(task.endpoint(0), _SECONDS_TO_CONNECT) as line:
        challenge = messages.parse(messages.read_line(line, soon)).get("nonce")
        if not isinstance(challenge, str):
            return ""
        nonce, number = secret.nonce(), str(task.number)
        proof = secret.proof(key, challenge, nonce, number, flags)
        report = {"number": task.number, "flags": flags, "nonce": nonce, "proof": proof}
        line.sendall(messages.encode(report))
        message = messages.parse(messages.read_line(line, deadline))
    answer = message.get("answer")
    parts = (challenge, nonce, "chief", str(answer))
    if not secret.is_proof(key, message.get("proof"), *parts):
        return ""
    return messages.printable(str(answer))
