"""Transformers of keras_hub: token ids, the model, its twins, and training."""

import functools
import shutil
import socket
import sys
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from experiments.applications import audit
from mp_loop.config import errors
from mp_loop.models import catalog, heads, language
from mp_loop.precision import keras_twin, norms, pairs, recomputation
from mp_loop.step import gradients, keras_step
from tests.support import encoders

keras_hub = pytest.importorskip("keras_hub")

pytestmark = pytest.mark.usefixtures("same_bits")

LENGTH = 12
WORDS = ("the", "a", "quick", "brown", "red", "fox", "dog", "film", "was", "is")
MORE_WORDS = ("good", "bad", "very", "not", "##s", "##ly")
VOCABULARY = [*encoders.SPECIAL, *WORDS, *MORE_WORDS]
HALVES = ("float16", "bfloat16")
# Half a unit in the last place.
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def in_ci(dtypes, *quick):
    """Dtypes that differ in nothing but their rounding here; the others are slow."""
    return [
        pytest.param(x, marks=[] if x in quick else [pytest.mark.slow]) for x in dtypes
    ]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A small BERT in a folder, of keras_hub's own files."""
    return encoders.bert(
        keras_hub, tmp_path_factory.mktemp("preset") / "bert", VOCABULARY
    )


@pytest.fixture(scope="module")
def model(preset):
    """For tests that do not change it."""
    return build(preset)


@pytest.fixture(scope="module")
def twin_of(model):
    """Returns a function of the dtype, for tests that do not change the twin."""
    return functools.cache(lambda dtype: mp_loop.half_precision_twin(model, dtype))


@pytest.fixture(scope="module")
def mixed_of(model):
    """The same of what Keras makes."""
    return functools.cache(lambda dtype: keras_step.under_policy(model, dtype))


def build(preset, **arguments):
    model = language.build(preset, LENGTH, 3, **arguments)
    head = model.get_layer("logits")
    head.bias.assign(keras.random.normal(head.bias.shape, seed=3))
    return model


def batch(size=8, seed=0):
    """Sentences of 1 to 10 words, padded."""
    generator = np.random.default_rng(seed)
    ids = np.zeros((size, LENGTH), np.int32)
    for row, words in zip(ids, generator.integers(1, LENGTH - 1, size), strict=True):
        row[0], row[words + 1] = 2, 3
        row[1 : words + 1] = generator.integers(5, len(VOCABULARY), words)
    return ids, generator.integers(0, 3, size)


def gradients_of(model, ids, labels, training=False):
    with tf.GradientTape() as tape:
        outputs = model(ids, training=training)
        loss = LOSS(labels, outputs)
    variables = [v.value for v in model.trainable_variables]
    found = tape.gradient(loss, variables)
    # As the step does: the rows of a sparse one are cast before they are summed.
    found = [gradients.map_gradient(lambda g: tf.cast(g, tf.float32), g) for g in found]
    return [np.asarray(tf.convert_to_tensor(grad)) for grad in found]


# Token ids.

SENTENCES = {
    "padded": (b"The quick fox", [2, 5, 7, 10, 3, 0, 0, 0]),
    "text": ("a dog", [2, 6, 11, 3, 0, 0, 0, 0]),
    "pieces": ("dogs", [2, 11, 19, 3, 0, 0, 0, 0]),
    "unknown": ("a cat", [2, 6, 1, 3, 0, 0, 0, 0]),
    "cut": (b"the film was not very very good", [2, 5, 12, 13, 18, 17, 17, 3]),
    "empty": (b"", [2, 3, 0, 0, 0, 0, 0, 0]),
    "not UTF-8": (b"a \xff dog", None),
}


def test_token_ids(preset):
    encode = language.tokenizer(preset, 8)
    sentences = [sentence for sentence, _ in SENTENCES.values()]
    ids = encode(np.array(sentences, object))
    assert ids.shape == (len(SENTENCES), 8) and ids.dtype == np.int32
    for row, (name, (_, wanted)) in zip(ids, SENTENCES.items(), strict=True):
        assert wanted is None or row.tolist() == wanted, name
    assert ids[-1][0] == 2 and 11 in ids[-1]
    np.testing.assert_array_equal(encode(sentences), ids)
    assert encode([]).shape == (0, 8)


# The model.


def test_one_input_one_output_and_no_weight_in_vain(model):
    (inputs,), (outputs,) = model.inputs, model.outputs
    assert (inputs.name, inputs.dtype) == ("token_ids", "int32")
    assert inputs.shape == (None, LENGTH) and outputs.shape == (None, 3)
    assert heads.from_logits(model)
    assert not [v.path for v in model.weights if "pool" in v.path]
    assert {v.dtype for v in model.weights} == {"float32"}
    assert any(isinstance(x, keras_hub.layers.TransformerEncoder) for x in model.layers)
    with tf.GradientTape() as tape:
        loss = LOSS(batch()[1], model(batch()[0]))
    found = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(grad is not None for grad in found)


def test_it_is_the_mean_of_the_backbones_outputs(preset, model):
    ids, _ = batch()
    backbone = keras_hub.models.Backbone.from_preset(preset)
    mask = ids != 0
    inputs = {"token_ids": ids, "padding_mask": mask, "segment_ids": 0 * ids}
    sequence = np.asarray(backbone(inputs)["sequence_output"])
    mean = (sequence * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    head = model.get_layer("logits")
    expected = mean @ np.asarray(head.kernel) + np.asarray(head.bias)
    np.testing.assert_allclose(model(ids), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", in_ci(("float32", *HALVES), "float32", "bfloat16"))
def test_padding_changes_nothing(preset, dtype):
    ids, _ = batch()
    ids[:, 7:] = 0
    logits = []
    for length in (7, LENGTH):
        model = language.build(preset, length, 3)
        if dtype != "float32":
            model = mp_loop.half_precision_twin(model, dtype)
        logits.append(np.asarray(model(ids[:, :length])))
    # Other lengths are summed in another order.
    bound = 8 * EPSILON.get(dtype, 2.0**-20) * np.abs(logits[0]).max()
    np.testing.assert_allclose(*logits, atol=bound)
    assert np.abs(logits[0] - logits[0][0]).max() > 0.01  # of the words they are


def test_the_seed_makes_the_head(preset):
    heads = []
    for seed in (0, 0, 1):
        keras.random.normal((3,))
        head = language.build(preset, LENGTH, 3, seed=seed).get_layer("logits")
        heads.append(np.asarray(head.kernel))
    assert (heads[0] == heads[1]).all() and (heads[0] != heads[2]).any()


def test_it_saves_and_loads(model, tmp_path):
    ids, _ = batch()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(ids), again(ids))


# Errors.

REFUSED = {
    "no such preset": ("nothing", {}, r"\('keras_hub:nothing'\) must name a folder"),
    "longer than it": (None, {"sequence_length": 17}, r"\(17\) must be at most 16"),
    "too short": (None, {"sequence_length": 2}, r"\(2\) must be at least 3"),
    "no class": (None, {"num_classes": 0}, r"`num_classes` \(0\) must be at least 1"),
    "all dropped": (None, {"dropout": 1.0}, r"`dropout` \(1.0\) must be in \[0, 1\)"),
    "seed": (None, {"seed": -1}, r"`seed` \(-1\) must be in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built(name, preset):
    given, arguments, message = REFUSED[name]
    arguments = {"sequence_length": LENGTH, "num_classes": 3, **arguments}
    with pytest.raises(errors.ModelError, match=message) as refused:
        language.build(given or preset, **arguments)
    assert "\n" not in str(refused.value)


def test_folders_that_hold_something_else(preset, tmp_path):
    with pytest.raises(errors.ModelError, match=r"`model` \('keras_hub:.*cannot be"):
        language.build(str(tmp_path), LENGTH, 3)
    with pytest.raises(errors.ModelError, match=r"`model` \('keras_hub:.*cannot be"):
        language.tokenizer(str(tmp_path), LENGTH)
    broken = tmp_path / "broken"
    shutil.copytree(preset, broken)
    (broken / "model.weights.h5").write_bytes(b"no weights")
    with pytest.raises(errors.ModelError, match="cannot be loaded") as refused:
        language.build(str(broken), LENGTH, 3)
    assert "\n" not in str(refused.value)


def test_a_backbone_without_a_sequence_is_refused(tmp_path):
    images = keras_hub.models.ViTBackbone(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        mlp_dim=4,
    )
    images.save_to_preset(str(tmp_path / "vit"))
    with pytest.raises(errors.ModelError, match="from token ids .* ViTBackbone is not"):
        language.build(str(tmp_path / "vit"), LENGTH, 3)


@pytest.mark.parametrize("name", ["bert_tiny_en_uncased", "hf://someone/bert"])
def test_without_network_a_name_is_refused_at_once(name, monkeypatch):
    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(errors.ModelError, match=f"{name}.*there is no network"):
        language.build(name, LENGTH, 3)


def test_without_keras_hub_it_says_what_to_install(preset, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    for call in (
        lambda: language.build(preset, 12, 3),
        lambda: language.tokenizer(preset, 12),
    ):
        with pytest.raises(errors.ModelError, match=r"pip install 'mp_loop\[text\]'"):
            call()


def test_the_name_is_not_a_function_of_images():
    with pytest.raises(errors.ModelError, match="it needs a text data set"):
        catalog.build("keras_hub:bert", (8, 8, 3), 3)


# Twins.


@pytest.mark.parametrize("dtype", in_ci(HALVES, "float16"))
def test_the_twin_is_near_the_model(model, twin_of, dtype):
    twin, (ids, labels) = twin_of(dtype), batch()
    exact, ours = np.asarray(model(ids)), np.asarray(twin(ids))
    # Two dozen roundings of numbers of this size.
    bound = 16 * EPSILON[dtype] * np.abs(exact).max()
    np.testing.assert_allclose(ours, exact, atol=bound)
    assert (ours != exact).any()
    pairs = zip(
        gradients_of(model, ids, labels),
        gradients_of(twin, ids, labels),
        model.trainable_variables,
        strict=True,
    )
    for want, have, variable in pairs:
        if variable.path.endswith("key/bias"):
            continue  # 0 but for rounding: softmax does not change
        error = np.linalg.norm(have - want) / np.linalg.norm(want)
        assert error < 32 * EPSILON[dtype], variable.path


@pytest.mark.parametrize("dtype", in_ci(HALVES, "float16"))
def test_weights_are_the_masters_in_order(model, twin_of, dtype):
    twin = twin_of(dtype)
    kernels = set()
    for master, working in pairs.of_weights(model, twin):
        if working is not master:
            assert working.dtype == dtype and master.name == "kernel"
            rounded = tf.cast(master.value, dtype)
            assert np.asarray(rounded).tobytes() == np.asarray(working).tobytes()
            kernels.add(master.path)
    # Four projections and two Dense layers in each of two encoders.
    assert len(kernels) == 12
    assert all(
        working.trainable == master.trainable
        for master, working in pairs.of_weights(model, twin)
    )


@pytest.mark.parametrize("dtype", in_ci(HALVES, "float16"))
def test_dtypes_of_the_layers(model, twin_of, dtype):
    twin = twin_of(dtype)
    produced = {layer.name: layer.output.dtype for layer in twin.layers[1:]}
    float32 = [name for name, found in produced.items() if found == "float32"]
    assert float32 == ["mean", "logits"]
    encoder = twin.get_layer("transformer_layer_0")
    parts = {part.name: part for part in encoder._flatten_layers(False, False)}
    attention = parts["self_attention_layer"]
    assert attention._softmax.compute_dtype == "float32"
    assert type(parts["self_attention_layer_norm"]) is norms._LayerNorm
    masters = model.get_layer("transformer_layer_0")
    assert [p.name for p in masters._layers] == list(parts)


def training_gradients(model):
    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def compute(ids, labels):
        with tf.GradientTape() as tape:
            loss = LOSS(labels, model(ids, training=True))
        return tape.gradient(loss, variables)

    return compute, *map(tf.constant, batch())


@pytest.mark.parametrize("dtype", in_ci(HALVES, "float16"))
def test_no_sum_and_no_softmax_below_float32(twin_of, mixed_of, dtype):
    arguments = training_gradients(twin_of(dtype))
    assert audit.half_precision_sums(*arguments) == []
    graph = arguments[0].get_concrete_function(*arguments[1:]).graph
    softmax = [op for op in graph.get_operations() if op.type == "Softmax"]
    assert len(softmax) >= 2
    mixed = mixed_of(f"mixed_{dtype}")
    assert audit.half_precision_sums(*training_gradients(mixed))


def test_a_masked_score_that_float16_cannot_hold(preset):
    """Scores of +-20,000, where a mask of -1e9 or a sum would be infinite."""
    model, (ids, labels) = build(preset), batch()
    attention = model.get_layer("transformer_layer_0")._self_attention_layer
    for dense in (attention.query_dense, attention.key_dense):
        dense.kernel.assign(dense.kernel * 60.0)
    twin = mp_loop.half_precision_twin(model, "float16")
    assert np.isfinite(twin(ids)).all()
    assert all(np.isfinite(grad).all() for grad in gradients_of(twin, ids, labels))


def test_positions_have_their_gradients_summed_in_float32():
    """4,096 examples of equal gradients: in bfloat16, a sum stops at 256."""
    inputs = keras.Input((3, 4))
    x = keras_hub.layers.PositionEmbedding(5)(inputs)
    model = keras.Model(inputs, keras.layers.Activation("linear")(x))
    twin = mp_loop.half_precision_twin(model, "bfloat16")
    assert twin.layers[1].output.dtype == "bfloat16"
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(twin(np.zeros((4096, 3, 4), np.float32)))
    grad = tape.gradient(total, twin.trainable_variables[0].value)
    grad = np.asarray(tf.convert_to_tensor(grad))
    assert (grad[:3] == 4096).all() and (grad[3:] == 0).all()


@pytest.mark.parametrize("dtype", in_ci(HALVES, "bfloat16"))
def test_token_and_position_embedding(dtype):
    inputs = keras.Input((6,), dtype="int32")
    # Smooth and wide: at the bend of a ReLU, and in a norm of 4 numbers, the gradients
    # of Keras' own policy are as far from float32, whatever computes them.
    x = keras_hub.layers.TokenAndPositionEmbedding(11, 8, 16)(inputs)
    encoder = keras_hub.layers.TransformerEncoder(
        8, 2, activation="gelu", normalize_first=True
    )
    x = encoder(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    twin = mp_loop.half_precision_twin(model, dtype)
    assert [layer.output.dtype for layer in twin.layers[1:3]] == [dtype] * 2
    ids = np.random.default_rng(0).integers(0, 11, (4, 6)).astype(np.int32)
    exact = np.asarray(model(ids))
    bound = 16 * EPSILON[dtype] * np.abs(exact).max()
    np.testing.assert_allclose(twin(ids), exact, atol=bound)
    want, have = (gradients_of(m, ids, np.arange(4) % 3) for m in (model, twin))
    for a, b, variable in zip(want, have, model.weights, strict=True):
        bound = 32 * EPSILON[dtype] * max(np.abs(a).max(), 1e-2)
        np.testing.assert_allclose(b, a, atol=bound, err_msg=variable.path)


def test_an_encoder_called_twice_sums_its_gradients_in_float32():
    inputs = keras.Input((6, 8))
    encoder = keras_hub.layers.TransformerEncoder(8, 2, activation="gelu")
    x = keras.layers.Flatten()(encoder(encoder(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    twin = mp_loop.half_precision_twin(model, "float16")
    x = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    np.testing.assert_allclose(twin(x), model(x), atol=0.02)
    assert {v.dtype for v in twin.weights} == {"float32"}


def test_a_layer_that_is_not_known_multiplies_in_16_bits():
    inputs = keras.Input((6, 8))
    decoder = keras_hub.layers.TransformerDecoder(8, 2)
    model = keras.Model(inputs, keras.layers.Flatten()(decoder(inputs)))
    twin = mp_loop.half_precision_twin(model, "float16")
    assert twin.layers[1].layer is decoder
    assert mp_loop.coverage(model, "float16").share == 1


def test_a_part_that_was_exchanged_is_converted_as_it_is():
    inputs = keras.Input((6, 8))
    encoder = keras_hub.layers.TransformerEncoder(8, 2)
    outputs = keras.layers.Flatten()(encoder(inputs))
    encoder._tracker.unlock()
    encoder._tracker.untrack(encoder._feedforward_output_dense)
    encoder._feedforward_output_dense = keras.layers.Dense(8, use_bias=False)
    encoder._feedforward_output_dense.build((None, 6, 8))
    model = keras.Model(inputs, keras.layers.Dense(3)(outputs))
    twin = mp_loop.half_precision_twin(model, "float16")
    x = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    np.testing.assert_allclose(twin(x), model(x), atol=0.02)
    assert len(pairs.of_weights(model, twin)) == 17


def test_an_encoder_with_a_weight_of_its_own_is_refused_by_name():
    inputs = keras.Input((6, 8))
    encoder = keras_hub.layers.TransformerEncoder(8, 2, name="mine")
    outputs = keras.layers.Dense(3)(encoder(inputs))
    encoder._tracker.unlock()
    encoder.add_weight(shape=(3,))
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="layer 'mine' .* cannot be converted"):
        mp_loop.half_precision_twin(model, "float16")
    mp_loop.half_precision_twin(model, "float16", float32_layers="mine")


@pytest.mark.parametrize("dtype", in_ci(HALVES, "float16"))
def test_keras_twin_computes_what_keras_does(model, mixed_of, dtype):
    mixed, (ids, labels) = mixed_of(f"mixed_{dtype}"), batch()
    inner = mixed.get_layer("transformer_layer_1")._flatten_layers()
    assert {layer.dtype_policy.name for layer in inner} == {f"mixed_{dtype}"}
    assert mixed.get_layer("transformer_layer_1").output.dtype == dtype
    twin = keras_twin.keras_twin(model, dtype)
    np.testing.assert_array_equal(twin(ids), mixed(ids))
    for ours, keras_own in zip(
        gradients_of(twin, ids, labels), gradients_of(mixed, ids, labels), strict=True
    ):
        np.testing.assert_array_equal(ours, keras_own)


# Training.


@pytest.mark.parametrize("dtype", in_ci(("float32", *HALVES), "float16"))
def test_steps_reduce_the_loss(preset, dtype):
    step = mp_loop.TrainStep(build(preset), keras.optimizers.Adam(3e-3), LOSS, dtype)
    ids, labels = batch(16)
    losses = [float(step(ids, labels)["loss"]) for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", in_ci(HALVES, "bfloat16"))
def test_a_skip_changes_nothing(preset, dtype):
    model, (ids, labels) = build(preset), batch()
    optimizer = keras.optimizers.AdamW(1e-2)
    step = mp_loop.TrainStep(
        model, optimizer, LOSS, dtype, mp_loop.StaticLossScale(1.0)
    )
    step(ids, labels)
    variables = [*model.weights, *step.twin.weights, *optimizer.variables]
    before = [np.asarray(v).tobytes() for v in variables]
    weight = np.ones(len(labels), np.float32)
    weight[0] = np.inf
    metrics = step(ids, labels, weight)
    assert not metrics["grads_finite"]
    assert [np.asarray(v).tobytes() for v in variables] == before
    assert step(ids, labels)["grads_finite"]
    assert [np.asarray(v).tobytes() for v in variables] != before


@pytest.mark.parametrize("dtype", in_ci(HALVES, "float16"))
def test_the_baseline_trains(preset, dtype):
    model, (ids, labels) = build(preset), batch(16)
    step = keras_step.KerasStep(model, keras.optimizers.Adam(3e-3), LOSS, dtype)
    losses = [float(step(ids, labels)["loss"]) for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    np.testing.assert_allclose(step.export()(ids), step.twin(ids), atol=0.2)


@pytest.mark.parametrize("dtype", in_ci(("float32", *HALVES), "bfloat16"))
def test_recomputed_gradients_are_equal(preset, dtype):
    """Dropout as well: the same masks in both runs of a segment."""
    weights = []
    for again in (False, True):
        step = mp_loop.TrainStep(
            build(preset), keras.optimizers.SGD(0.1), LOSS, dtype, recompute=again
        )
        for seed in range(3):
            step(*batch(seed=seed))
        weights.append([np.asarray(v) for v in step.model.weights])
    bound = EPSILON.get(dtype, 2.0**-20)  # XLA may order sums otherwise
    for plain, recomputed in zip(*weights, strict=True):
        np.testing.assert_allclose(recomputed, plain, atol=bound)


def test_each_encoder_is_recomputed_by_itself(preset):
    model = build(preset)
    segments = recomputation.Recomputed(model).segments
    encoders = [
        [x for x in segment.layers if x.name.startswith("transformer")]
        for segment in segments
    ]
    assert [len(found) for found in encoders if found] == [1, 1]
    assert all(len(segment.outputs) == 1 for segment in segments)


def test_a_saved_tokenizer_gives_the_same_tokens_without_its_preset(preset, tmp_path):
    encode = language.tokenizer(preset, 8)
    encode.save(str(tmp_path / "tokenizer"))
    again = language.saved_tokenizer(str(tmp_path / "tokenizer"))
    sentences = [b"The quick fox", b"dogs"]
    np.testing.assert_array_equal(again(sentences), encode(sentences))
    assert [again.text(row) for row in again(sentences)] == ["the quick fox", "dogs"]
    (tmp_path / "tokenizer" / "assets" / "tokenizer" / "vocabulary.txt").unlink()
    with pytest.raises(errors.ModelError, match="cannot be read as a tokenizer: "):
        language.saved_tokenizer(str(tmp_path / "tokenizer"))
