"""Workloads: the same batches and parameters for every framework."""

import subprocess
import sys

import pytest

from mp_loop.bench import workloads


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_batches_are_the_same_on_every_call(name):
    workload = workloads.WORKLOADS[name]
    inputs, labels = workload.batch(3)
    assert inputs.shape == (3, *workload.shape)
    assert labels.shape == ((3, *workload.shape) if name == "decoder" else (3,))
    assert (workload.batch(3)[0] == inputs).all()


def test_the_label_of_a_token_is_the_next_one():
    inputs, labels = workloads.WORKLOADS["decoder"].batch(2)
    assert (inputs[:, 1:] == labels[:, :-1]).all()


PARAMETERS = {
    # Those that are published, less moving statistics, BERT's pooler, and with a head.
    "resnet50_224": 25_583_592,
    "vit_b16": 86_567_656,
    "bert_base": 108_891_648 + 2 * 768 + 2,
    "decoder": 124_439_808,
}


@pytest.mark.peers
@pytest.mark.parametrize(
    "name",
    [name for name, w in workloads.WORKLOADS.items() if w.has_peer and not w.is_update],
)
def test_pytorch_has_the_same_parameters(name):
    pytest.importorskip("torch")
    code = (
        "import torch;"
        "from mp_loop.bench import torch_models, workloads;"
        "torch.set_default_device('meta');"
        f"model = torch_models.build_model(workloads.WORKLOADS['{name}']);"
        "print(sum(p.numel() for p in model.parameters()))"
    )
    words = [sys.executable, "-c", code]
    theirs = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    from mp_loop.bench import keras_models

    model = keras_models.build_model(workloads.WORKLOADS[name])
    ours = sum(v.shape.num_elements() for v in model.trainable_variables)
    assert int(theirs) == ours == PARAMETERS.get(name, ours)
