"""The handshake of workers, on real sockets."""

import contextlib
import socket
import threading
import time

import pytest

from mp_loop.distributed import cluster, handshake, messages, secret
from tests.support import tf_config


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def meet(tasks, flags, seconds=10.0, delays=(0, 0, 0)):
    """Runs the handshake in a thread for each task; returns what each raised."""
    ends = [None] * len(tasks)

    def run(i):
        time.sleep(delays[i])
        try:
            handshake.wait_for_all(tasks[i], flags[i], seconds)
        except Exception as error:
            ends[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return ends


def tasks(count, present=None):
    port = free_port()
    numbers = range(count) if present is None else present
    return [cluster.task(tf_config.of_process(n, count, port)) for n in numbers]


@pytest.mark.parametrize("delays", [(0, 0.3, 0), (0.5, 0, 0.2)], ids=str)
def test_all_go_on_together_whoever_comes_first(delays):
    assert meet(tasks(3), ["--a\n"] * 3, delays=delays) == [None] * 3
    # The chief's port is free again: TensorFlow takes it next.
    again = tasks(2)
    assert meet(again, [""] * 2) == meet(again, [""] * 2) == [None] * 2


def test_a_cluster_of_one_has_nobody_to_wait_for():
    assert meet(tasks(1), [""]) == [None]


def test_other_flags_are_refused_everywhere_by_name():
    found = meet(tasks(3), ["--a=1\n--b=2\n", "--a=1\n--b=2\n", "--a=1\n--b=3\n"])
    said = "worker 2 has other flags than the chief: --b=3 instead of --b=2."
    assert [(type(e), str(e)) for e in found] == [(cluster.ClusterError, said)] * 3


@pytest.mark.parametrize("present", [[0, 1], [1, 2]], ids=["no worker", "no chief"])
def test_who_does_not_come_is_named_in_bounded_time(present):
    started = time.monotonic()
    there = tasks(3, present)
    found = meet(there, [""] * 2, seconds=1.0)
    assert time.monotonic() - started < 20
    # The worker that came loses its chief, and says so.
    missing = f"worker 2 ({there[0].addresses[2]}) did not start within 1 seconds"
    if present == [1, 2]:
        missing = f"the chief ({there[0].addresses[0]}) did not start within 1 seconds"
    assert all(isinstance(e, cluster.WorkerLost) for e in found)
    assert missing in str(found[0])


def reached(task, over):
    """A connection to the chief, as soon as it listens, and until it is over."""
    while not over.is_set():
        try:
            return socket.create_connection(task.endpoint(0), 5)
        except OSError:
            time.sleep(0.01)
    raise OSError("over")


def report(line, key=b"", **changes):
    """What a caller who knows how sends."""
    challenge = messages.parse(messages.read_line(line, time.monotonic() + 5))["nonce"]
    message = {"number": 1, "flags": "--a\n", "nonce": "n"} | changes
    parts = (challenge, "n", str(message["number"]), str(message["flags"]))
    return messages.encode({"proof": secret.proof(key, *parts)} | message)


STRANGERS = {
    "another protocol": lambda line: b"GET / HTTP/1.1\r\n\r\n",
    "bytes": lambda line: b"\xff\n",
    "nothing": lambda line: b"",
    "half a line": lambda line: b'{"number": 1',
    "a line without end": lambda line: b"x" * 200_000,
    "brackets": lambda line: b"[" * 50_000 + b"\n",
    "a number without end": lambda line: b'{"number": 1e999, "flags": ""}\n',
    "no proof": lambda line: report(line, flags="--b\n", proof=None),
    "a wrong proof": lambda line: report(line, b"guessed", flags="\x1b[31m"),
    "another's place": lambda line: report(line, b"guessed", number=2),
    **{
        f"number {number!r}": lambda line, number=number: report(line, number=number)
        for number in (99, 0, -5, 1.9, True, "1", None, [1])
    },
    "flags of numbers": lambda line: report(line, flags=5),
}


@pytest.fixture(params=["", "the secret of these tests"], ids=["open", "secret"])
def token(request, monkeypatch):
    monkeypatch.setenv(secret.TOKEN, request.param)
    return request.param.encode()


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_at_the_port_are_ignored(name, token):
    both = tasks(2)

    def disturb():
        while not over.is_set() and len(kept) < 3:
            with contextlib.suppress(OSError), reached(both[0], over) as line:
                line.sendall(STRANGERS[name](line))
                kept.append(line.dup())  # it stays open

    kept, over = [], threading.Event()
    thread = threading.Thread(target=disturb)
    thread.start()
    assert meet(both, ["--a\n"] * 2, delays=(0, 0.1)) == [None] * 2
    over.set()
    thread.join()
    for line in kept:
        line.close()


def test_silent_callers_keep_nobody_out():
    both = tasks(2)
    silent, over = [], threading.Event()

    def disturb():  # as often as it comes to; the chief may be done before
        with contextlib.suppress(OSError):
            for _ in range(150):
                silent.append(reached(both[0], over))

    thread = threading.Thread(target=disturb)
    thread.start()
    # Far below the five seconds that each of them may be silent.
    assert meet(both, [""] * 2, delays=(0, 0.3), seconds=4.0) == [None] * 2
    over.set()
    thread.join()
    assert silent
    for line in silent:
        line.close()


def test_the_deadline_is_that_of_the_whole_call():
    """One byte at a time, for ever, holds nobody beyond it."""
    both = tasks(2)
    over = threading.Event()

    def dribble():
        with contextlib.suppress(OSError), reached(both[0], over) as line:
            while not over.wait(0.02):
                line.sendall(b"x")

    thread = threading.Thread(target=dribble)
    thread.start()
    (found,) = meet(both[:1], [""], seconds=0.5)
    over.set()
    thread.join()
    assert isinstance(found, cluster.WorkerLost)
    assert "worker 1 (" in str(found)


def test_a_place_is_taken_once(token):
    there = tasks(3, [0, 1, 1])
    ends = []

    def third():
        second_has_been_told.wait(10)
        task = cluster.Task(there[0].addresses, 2)
        ends.append(meet([task], [""])[0])

    second_has_been_told = threading.Event()
    thread = threading.Thread(target=third)
    thread.start()
    main = threading.Thread(target=lambda: ends.append(meet(there[:1], [""])[0]))
    main.start()
    found = []

    def worker(task):
        (end,) = meet([task], [""])
        found.append(end)
        second_has_been_told.set()

    workers = [threading.Thread(target=worker, args=(task,)) for task in there[1:]]
    for one in (*workers, thread, main):
        one.start() if one in workers else None
    for one in (*workers, thread, main):
        one.join(30)
    assert ends == [None, None]
    assert sorted(map(str, found)) == [
        "None",
        "worker 1 has reported twice: two processes have its place.",
    ]


def test_what_differs_is_shown_without_control_characters():
    flags = ["--a=1\n", "--a=\x1b[31mred\x07" + "x" * 1000 + "\n"]
    for end in meet(tasks(2), flags):
        assert isinstance(end, cluster.ClusterError)
        assert "--a=?[31mred?xxx" in str(end) and len(str(end)) < 500
        assert str(end).isprintable()


def test_a_worker_believes_only_the_chief(monkeypatch):
    monkeypatch.setenv(secret.TOKEN, "the secret of these tests")
    both = tasks(2)

    def pose(server):
        with contextlib.suppress(OSError):
            while True:
                line, _ = server.accept()
                line.sendall(messages.encode({"nonce": "n"}))
                line.sendall(messages.encode({"answer": "\x1b[31mgo", "proof": "0"}))
                line.close()

    with socket.create_server(both[0].endpoint(0)) as server:
        thread = threading.Thread(target=pose, args=(server,))
        thread.start()
        (found,) = meet(both[1:], [""], seconds=0.5)
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert isinstance(found, cluster.WorkerLost) and str(found).isprintable()


def test_an_ipv6_cluster_meets():
    port = free_port()
    addresses = (f"[::1]:{port}", f"[::1]:{port + 1}")
    assert meet([cluster.Task(addresses, n) for n in (0, 1)], [""] * 2) == [None] * 2


def test_other_machines_need_a_secret(monkeypatch):
    monkeypatch.delenv(secret.TOKEN, raising=False)
    with pytest.raises(cluster.ClusterError, match=f"{secret.TOKEN} .* must be set"):
        handshake.wait_for_all(cluster.Task(("one:1", "two:1"), 0), "", 1.0)


def test_an_address_in_use_is_refused():
    both = tasks(2)
    port = int(both[0].addresses[0].rsplit(":", 1)[1])
    with (
        socket.create_server(("", port)),
        pytest.raises(cluster.ClusterError, match="must be free on this machine"),
    ):
        handshake.wait_for_all(both[0], "", 1.0)
