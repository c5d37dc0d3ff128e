"""The benchmark's arms on TensorFlow: what is compiled, and where batches wait."""

import pytest
import tensorflow as tf

from mp_loop.bench import choices, keras_loops, keras_models, tasks, workloads
from mp_loop.hardware import devices

MLP = workloads.WORKLOADS["mlp_tiny"].tiny()


def task(arm, **others):
    return tasks.Task(choices.parse_arms(arm)[0], MLP, 2, **others)


@pytest.fixture(autouse=True)
def tf32():
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def compiled_types(many, *arguments):
    """The types of operations in the functions of an arm that XLA compiles."""
    steps = tf.TensorSpec([], tf.int32)
    traced = tf.function(many, autograph=False).get_concrete_function(*arguments, steps)
    functions = traced.graph.as_graph_def().library.function
    return {
        node.op
        for function in functions
        if function.attr["_XlaMustCompile"].b
        for node in function.node_def
    }


@pytest.mark.parametrize("loop", ["floor", "unscaled"])
def test_parts_of_our_step_are_compiled_when_asked(loop, monkeypatch):
    monkeypatch.setattr(keras_loops, "_traced", compiled_types)
    found = keras_loops.make(task(f"{loop}:float16+xla+tf32"), True)
    assert "MatMul" in found
    assert ("AssignVariableOp" in found) == (loop == "unscaled")
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    assert not keras_loops.make(task(f"{loop}:float16"), True)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_on_a_gpu_the_batch_may_wait_there(monkeypatch):
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.delattr(keras_loops, "_dataset")  # no batch comes from the host
    for arm in ("custom:float32", "keras:float32"):
        program = keras_loops.make(task(arm, on_device=True), small_first=False)
        program.run(1)
        program.run(3)


@pytest.mark.parametrize(
    "name", ["transformer_base", "vit_b16", "bert_base", "decoder"]
)
def test_a_workload_of_a_gpus_size_is_a_model_and_its_batch(name):
    workload = workloads.WORKLOADS[name].tiny()
    inputs, labels = map(tf.constant, workload.batch(2))
    outputs = keras_models.build_model(workload)(inputs, training=True)
    assert tf.math.is_finite(keras_models.LOSS(labels, outputs))
    assert outputs.shape == (*labels.shape, workload.classes)
