"""Workloads: the same batches and parameters for every framework."""

import subprocess
import sys

import pytest

from mp_loop.bench import workloads


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_batches_are_the_same_on_every_call(name):
    workload = workloads.WORKLOADS[name]
    inputs, labels = workload.batch(3)
    assert inputs.shape == (3, *workload.shape) and labels.shape == (3,)
    assert (workload.batch(3)[0] == inputs).all()


@pytest.mark.peers
@pytest.mark.parametrize(
    "name",
    [name for name, w in workloads.WORKLOADS.items() if w.has_peer and not w.is_update],
)
def test_pytorch_has_the_same_parameters(name):
    pytest.importorskip("torch")
    code = (
        "from mp_loop.bench import torch_models;"
        f"model = torch_models.build_model('{name}');"
        "print(sum(p.numel() for p in model.parameters()))"
    )
    words = [sys.executable, "-c", code]
    theirs = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    from mp_loop.bench import keras_models

    model = keras_models.build_model(name)
    ours = sum(v.shape.num_elements() for v in model.trainable_variables)
    assert int(theirs) == ours
