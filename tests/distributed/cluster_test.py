"""TF_CONFIG, and the roll call of real sockets."""

import json
import os
import pathlib
import re
import socket
import subprocess
import textwrap
import threading
import time

import pytest

from mp_loop.distributed import cluster


def config(number=0, count=2, port=2222, chief=False, **task):
    addresses = [f"127.0.0.1:{port + i}" for i in range(count)]
    groups = {"chief": addresses[:1], "worker": addresses[1:]}
    kind, index = ("worker", number - 1) if number else ("chief", 0)
    if not chief:
        groups, kind, index = {"worker": addresses}, "worker", number
    return json.dumps(
        {"cluster": groups, "task": {"type": kind, "index": index} | task}
    )


@pytest.mark.parametrize("chief", [False, True], ids=["workers", "chief and workers"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_first_process_is_the_chief(number, chief):
    task = cluster.task(config(number, count=3, chief=chief))
    assert (task.number, task.is_chief) == (number, number == 0)
    assert task.addresses == tuple(f"127.0.0.1:{2222 + i}" for i in range(3))


BAD = {
    "empty": ("", "needs the environment variable TF_CONFIG"),
    "not JSON": ("worker 0", "TF_CONFIG must be JSON of the form"),
    "no cluster": (
        '{"task": {"type": "worker", "index": 0}}',
        "must be JSON .*cluster",
    ),
    "a list": ("[1]", "TF_CONFIG must be JSON of the form"),
    "parameter server": (
        '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        r"cluster \(ps\) must hold chief and worker only",
    ),
    "evaluator": (config(type="evaluator"), r"task type \(evaluator\) must be one of"),
    "index too large": (config(index=2), r"index \(2\) must be among the 2"),
    "index of words": (config(index="0"), r"index \(0\) must be among the 2"),
    "no port": (
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        r"cluster \(a\) must hold addresses of the form host:port",
    ),
    "twice the same": (
        '{"cluster": {"worker": ["a:1", "a:1"]}, '
        '"task": {"type": "worker", "index": 0}}',
        "cluster must name no address twice",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_unlawful_settings_are_refused_in_one_line(name):
    text, said = BAD[name]
    with pytest.raises(cluster.ClusterError, match=said) as error:
        cluster.task(text)
    assert "\n" not in str(error.value)


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def call(tasks, flags, seconds=10.0, delays=(0, 0, 0)):
    """Calls the roll in a thread for each task; returns what each raised."""
    ends = [None] * len(tasks)

    def run(i):
        time.sleep(delays[i])
        try:
            cluster.call_roll(tasks[i], flags[i], seconds)
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
    return [cluster.task(config(n, count, port)) for n in numbers]


@pytest.mark.parametrize("delays", [(0, 0.3, 0), (0.5, 0, 0.2)], ids=str)
def test_all_go_on_together_whoever_comes_first(delays):
    assert call(tasks(3), ["--a\n"] * 3, delays=delays) == [None] * 3
    # The chief's port is free again: TensorFlow takes it next.
    again = tasks(2)
    assert call(again, [""] * 2) == call(again, [""] * 2) == [None] * 2


def test_a_cluster_of_one_has_nobody_to_wait_for():
    assert call(tasks(1), [""]) == [None]


def test_other_flags_are_refused_everywhere_by_name():
    found = call(tasks(3), ["--a=1\n--b=2\n", "--a=1\n--b=2\n", "--a=1\n--b=3\n"])
    said = "worker 2 has other flags than the chief: --b=3 instead of --b=2."
    assert [(type(e), str(e)) for e in found] == [(cluster.ClusterError, said)] * 3


@pytest.mark.parametrize("present", [[0, 1], [1, 2]], ids=["no worker", "no chief"])
def test_who_does_not_come_is_named_in_bounded_time(present):
    started = time.monotonic()
    there = tasks(3, present)
    found = call(there, [""] * 2, seconds=1.0)
    assert time.monotonic() - started < 20
    # The worker that came loses its chief, and says so.
    missing = f"worker 2 ({there[0].addresses[2]}) did not come within 1 seconds"
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
    assert call(both, [""] * 2, delays=(0, 1.5)) == [None] * 2
    thread.join()
    assert len(done) == 4


def test_an_address_in_use_is_refused():
    both = tasks(2)
    port = int(both[0].addresses[0].rsplit(":", 1)[1])
    with (
        socket.create_server(("", port)),
        pytest.raises(cluster.ClusterError, match="must be free on this machine"),
    ):
        cluster.call_roll(both[0], "", 1.0)


# The examples, with stand-ins for what only a cluster has.
EXAMPLES = pathlib.Path(__file__).parents[2] / "experiments" / "cluster"
STAND_INS = {
    "scontrol": '[ "$1" = show ] && printf "one\\ntwo\\n" || echo "$@" >> requeued',
    "srun": 'shift; for i in 0 1; do SLURM_PROCID=$i "$@" || code=$?; done; '
    "exit ${code:-0}",
    "python": 'echo "$TF_CONFIG" | tr -d "\\n" >> told; echo "|$@" >> told; exit $CODE',
}


@pytest.fixture
def stand_ins(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STAND_INS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def told(folder):
    """What each worker would have run: its task, and its words."""
    lines = [line.split("|") for line in (folder / "told").read_text().splitlines()]
    return [(cluster.task(text), words.split()) for text, words in lines]


@pytest.mark.parametrize("code", [0, 2, 75], ids=["done", "refused", "worker lost"])
def test_the_slurm_example(tmp_path, stand_ins, code):
    environment = {
        "PATH": stand_ins,
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "one,two",
        "CODE": str(code),
    }

    def submit():
        script = ["bash", EXAMPLES / "slurm.sh"]
        return subprocess.run(script, env=environment, cwd=tmp_path).returncode

    assert submit() == code
    found = told(tmp_path)
    assert [task.number for task, _ in found] == [0, 1]
    assert {task.addresses for task, _ in found} == {("one:20123", "two:20123")}
    assert all("--strategy=multi_worker" in words for _, words in found)
    assert not any("--resume" in words for _, words in found)
    assert (tmp_path / "requeued").exists() == (code == 75)
    (tmp_path / "runs" / "cluster").mkdir(parents=True)
    (tmp_path / "runs" / "cluster" / "flags.txt").touch()
    submit()
    assert all("--resume" in words for _, words in told(tmp_path)[2:])


@pytest.mark.parametrize("index", [0, 1])
def test_the_kubernetes_example(tmp_path, stand_ins, index):
    text = (EXAMPLES / "kubernetes.yaml").read_text()
    script = textwrap.dedent(re.search(r"- \|\n(.*?)\n +volumes:", text, re.S)[1])
    environment = {
        "PATH": stand_ins,
        "WORKERS": "2",
        "JOB_COMPLETION_INDEX": str(index),
        "CODE": "0",
    }
    command = ["bash", "-euc", script]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    ((task, words),) = told(tmp_path)
    assert task.number == index
    assert task.addresses == ("mp-loop-0.mp-loop:2222", "mp-loop-1.mp-loop:2222")
    assert words[-1] == "--output_dir=/runs/first"
