"""The models of PyTorch compute what those of Keras do."""

import numpy as np
import pytest

from mp_loop.bench import keras_models, workloads


def numbers(kind, *shape):
    """The same weights for the same kind and shape."""
    noise = np.sin(np.arange(np.prod(shape)).reshape(shape) * 12.9898) / 2
    if kind == "kernel":
        noise *= 2 / np.sqrt(np.prod(shape[:-1]))
    return ({"gamma": 1, "bias": 0, "kernel": 0, "table": 0}[kind] + noise).astype("f4")


def fill_keras(model, width):
    """Kernels of attention are [width, heads, n] or [heads, n, width]."""
    for weight in model.weights:
        name, shape = weight.path.split("/")[-1], tuple(weight.shape)
        if name in ("gamma", "kernel") and len(shape) != 3:
            value = numbers(name, *shape)
        elif name == "kernel":
            value = numbers(name, width, width)
        elif name in ("beta", "bias"):
            value = numbers("bias", np.prod(shape))
        else:
            value = numbers("table", *shape[-2:])
        weight.assign(value.reshape(shape))


def fill_torch(model, torch):
    """Queries, keys and values are one layer, [3 width, width]."""
    for layer in model.modules():
        if hasattr(layer, "dropout"):  # of attention, which `eval` does not stop
            layer.dropout = 0.0
        kind = type(layer).__name__
        for name, weight in layer.named_parameters(recurse=False):
            first, *others = weight.shape
            times = 3 if kind == "Linear" and first == 3 * layer.in_features else 1
            if kind == "LayerNorm":
                value = numbers("gamma" if name == "weight" else "bias", first)
            elif name == "bias":
                value = np.tile(numbers("bias", first // times), times)
            elif kind == "Linear":
                value = np.tile(
                    numbers("kernel", *others, first // times).T, (times, 1)
                )
            elif kind == "Conv2d":
                channels, height, across = others
                value = numbers("kernel", height, across, channels, first)
                value = value.transpose(3, 2, 0, 1)
            else:
                value = numbers("table", *weight.shape[-2:]).reshape(weight.shape)
            weight.data = torch.from_numpy(np.ascontiguousarray(value))


@pytest.mark.peers
@pytest.mark.parametrize(
    "name", ["transformer_base", "vit", "vit_b16", "bert_base", "decoder", "gpt2"]
)
def test_transformers_compute_the_same(name):
    torch = pytest.importorskip("torch")
    from mp_loop.bench import torch_models

    workload = workloads.WORKLOADS[name]
    if name != "vit":  # which is small, and of one size
        workload = workload.tiny()
    ours = keras_models.build_model(workload)
    theirs = torch_models.build_model(workload).eval()
    fill_keras(ours, workload.width)
    fill_torch(theirs, torch)
    inputs, _ = workload.batch(2)
    if workload.vocabulary:
        inputs[:, -3:] = 0  # BERT's padding
    expected = ours(inputs, training=False).numpy()
    inputs = torch.from_numpy(inputs)
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2)
    found = theirs(inputs).detach().numpy()
    scale = expected.std()  # float32, and some hundred sums of it
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
