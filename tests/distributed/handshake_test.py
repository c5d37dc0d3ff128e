"""The handshake of workers, on real sockets."""

import socket
import threading
import time

import pytest

from mp_loop.distributed import cluster, handshake
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


def test_strangers_at_the_port_are_ignored():
    both = tasks(2)
    port = int(both[0].addresses[0].rsplit(":", 1)[1])
    done = []

    def disturb():
        for said in (b"GET / HTTP/1.1\r\n\r\n", b'{"number": "x"}\n', b"\xff\n", b""):
            for _ in range(50):
                try:
                    with socket.create_connection(("127.0.0.1", port), 1) as line:
                        line.sendall(said)
                    done.append(said)
                    break
                except OSError:
                    time.sleep(0.05)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert meet(both, [""] * 2, delays=(0, 1.5)) == [None] * 2
    thread.join()
    assert len(done) == 4


def test_an_address_in_use_is_refused():
    both = tasks(2)
    port = int(both[0].addresses[0].rsplit(":", 1)[1])
    with (
        socket.create_server(("", port)),
        pytest.raises(cluster.ClusterError, match="must be free on this machine"),
    ):
        handshake.wait_for_all(both[0], "", 1.0)
