"""TF_CONFIG, and the examples that set it."""

import json
import os
import pathlib
import re
import subprocess
import textwrap

import pytest

from mp_loop.distributed import cluster
from tests.support import tf_config


@pytest.mark.parametrize("chief", [False, True], ids=["workers", "chief and workers"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_first_process_is_the_chief(number, chief):
    task = cluster.task(tf_config.of_process(number, count=3, chief=chief))
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
    "evaluator": (
        tf_config.of_process(type="evaluator"),
        r"task type \(evaluator\) must be one of",
    ),
    "index too large": (
        tf_config.of_process(index=2),
        r"index \(2\) must be at least 0 and below 2",
    ),
    "index of words": (
        tf_config.of_process(index="0"),
        r"index \(0\) must be at least 0 and below 2",
    ),
    "no port": (
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        r"cluster \(a\) must hold addresses of the form host:port",
    ),
    "brackets": ("[" * 100_000, "TF_CONFIG must be JSON of the form"),
    "a port beyond all ports": (
        '{"cluster": {"worker": ["a:99999"]}, "task": {"type": "worker", "index": 0}}',
        r"cluster \(a:99999\) must hold .* with a port from 1 to 65535",
    ),
    "a long name": (
        '{"cluster": {"worker": ["%s:1"]}, "task": {"type": "worker", "index": 0}}'
        % ("a" * 300),
        "must hold addresses of the form host:port",
    ),
    "escape codes": (
        '{"cluster": {"worker": ["\\u001b[31m:1"]}, '
        '"task": {"type": "worker", "index": 0}}',
        r"cluster \(\?\[31m:1\) must hold addresses",
    ),
    "IPv6 without brackets": (
        '{"cluster": {"worker": ["::1:22"]}, "task": {"type": "worker", "index": 0}}',
        "must hold addresses of the form",
    ),
    "an address in another case": (
        '{"cluster": {"worker": ["a:1", "A:1"]}, '
        '"task": {"type": "worker", "index": 0}}',
        "cluster must not name an address twice",
    ),
    "an index of truth": (
        tf_config.of_process(index=True),
        r"index \(True\) must be at least 0",
    ),
    "twice the same": (
        '{"cluster": {"worker": ["a:1", "a:1"]}, '
        '"task": {"type": "worker", "index": 0}}',
        "cluster must not name an address twice",
    ),
}


ENDPOINTS = {
    "host.name:2222": ("host.name", 2222, False),
    "a_b-0.c:65535": ("a_b-0.c", 65535, False),
    "127.0.0.9:1": ("127.0.0.9", 1, True),
    "localhost:80": ("localhost", 80, True),
    "[::1]:2222": ("::1", 2222, True),
    "[fe80::1]:2222": ("fe80::1", 2222, False),
}


@pytest.mark.parametrize("address", ENDPOINTS)
def test_addresses(address):
    text = json.dumps(
        {"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}}
    )
    task = cluster.task(text)
    assert (*task.endpoint(0), task.is_on_loopback) == ENDPOINTS[address]


@pytest.mark.parametrize("name", BAD)
def test_settings_that_are_not_valid_are_refused_in_one_line(name):
    text, said = BAD[name]
    with pytest.raises(cluster.ClusterError, match=said) as error:
        cluster.task(text)
    assert "\n" not in str(error.value)


# The examples, with stand-ins for what only a cluster has.
EXAMPLES = pathlib.Path(__file__).parents[2] / "experiments" / "cluster"
STAND_INS = {
    "scontrol": '[ "$1" = show ] && printf "one\\ntwo\\n" || echo "$@" >> requeued',
    "srun": 'shift; for i in 0 1; do SLURM_PROCID=$i "$@" || code=$?; done; '
    "exit ${code:-0}",
    "python": 'echo "$TF_CONFIG" | tr -d "\\n" >> told; echo "|$@" >> told; '
    'echo "$MP_LOOP_CLUSTER_TOKEN" >> tokens; exit $CODE',
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
    assert all("--resume=auto" in words for _, words in found)
    (token,) = set((tmp_path / "tokens").read_text().split())
    assert len(token) == 64
    assert (tmp_path / "requeued").exists() == (code == 75)


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
    assert words[-2:] == ["--output_dir=/runs/first", "--resume=auto"]
