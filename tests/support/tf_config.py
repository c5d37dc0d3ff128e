"""TF_CONFIG as a cluster's tools set it, for tests."""

import json


def of_process(number=0, count=2, port=2222, chief=False, **task):
    """The value of TF_CONFIG for one process of a cluster on this machine."""
    addresses = [f"127.0.0.1:{port + i}" for i in range(count)]
    groups = {"chief": addresses[:1], "worker": addresses[1:]}
    kind, index = ("worker", number - 1) if number else ("chief", 0)
    if not chief:
        groups, kind, index = {"worker": addresses}, "worker", number
    return json.dumps(
        {"cluster": groups, "task": {"type": kind, "index": index} | task}
    )
