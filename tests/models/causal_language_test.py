"""Models that predict the next token: what can be one, its tokens, training, text."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.config import errors
from mp_loop.models import adapters, causal_language, trainable_layers
from mp_loop.precision import pairs
from tests.support import decoders

keras_hub = pytest.importorskip("keras_hub")

pytestmark = pytest.mark.usefixtures("same_bits")

LENGTH = 12
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TEXT = "the loss scale doubles, the loss scale halves; "


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    keras.utils.set_random_seed(1)
    folder = str(tmp_path_factory.mktemp("preset") / "gpt2")
    decoders.gpt2(keras_hub).save_to_preset(folder)
    return f"keras_hub:{folder}"


def own_model(input_shape, num_classes):
    """One that a user's module makes: no dictionary, no tokenizer."""
    ids = keras.Input(input_shape, dtype="int32")
    x = keras.layers.Embedding(num_classes, 8)(ids)
    return keras.Model(ids, keras.layers.Dense(num_classes)(x))


def not_one(input_shape, num_classes):
    """A classifier of whole texts."""
    ids = keras.Input(input_shape, dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Embedding(num_classes, 8)(ids))
    return keras.Model(ids, keras.layers.Dense(num_classes)(x))


def batch(model, size=4):
    tokens = causal_language.tokens("made", model)
    (ids,) = tokens.encode([TEXT * 4])
    ids = ids[: size * (LENGTH + 1)].reshape(size, LENGTH + 1)
    prepare = causal_language.inputs(model) or (lambda x: x)
    return prepare(tf.constant(ids[:, :-1])), ids[:, 1:]


def generated(model):
    model.compile(sampler="greedy", jit_compile=False)
    return model.generate("the ", max_length=16)


# Tokens.


def test_the_tokens_of_a_small_decoder_are_bytes():
    tokenizer = causal_language.byte_tokenizer()
    for text in ("the café\n\n  x\t\x00", "".join(map(chr, range(0x20, 0x180))), ""):
        ids = tokenizer(text)
        assert list(ids) == list(text.encode()) and tokenizer.detokenize(ids) == text
    assert (tokenizer.end_token_id, tokenizer.vocabulary_size()) == (256, 258)


def test_tokens_of_a_model(preset):
    model = causal_language.build(preset, LENGTH)
    tokens = causal_language.tokens(preset, model)
    assert (tokens.start, tokens.end, tokens.vocabulary_size) == (None, 256, 258)
    assert [list(x) for x in tokens.encode(["ab", "c"])] == [[97, 98], [99]]
    named = causal_language.inputs(model)(tf.constant([[5, 6]]))
    assert {key: x.numpy().tolist() for key, x in named.items()} == {
        "token_ids": [[5, 6]],
        "padding_mask": [[1, 1]],
    }


# Models.


def test_a_model_of_a_users_function():
    model = causal_language.build(f"{__name__}:own_model", LENGTH)
    assert model.output_shape == (None, LENGTH, 258)
    assert causal_language.inputs(model) is None
    assert causal_language.tokens("own", model).end == 256


def test_the_seed_makes_a_small_decoder():
    kernels = [
        causal_language.build("small_decoder", 4, seed=seed).trainable_weights[2]
        for seed in (0, 0, 1)
    ]
    one, same, other = map(np.asarray, kernels)
    assert (one == same).all() and (one != other).any()


REFUSED = {
    "longer than it": (None, 17, {}, r"`sequence_length` \(17\) must be at most 16"),
    "dropout": (None, 8, {"dropout": 0.1}, r"`dropout` \(0.1\) is for small_decoder"),
    "no such preset": ("keras_hub:nothing", 8, {}, "must name a folder"),
    "of whole texts": (
        f"{__name__}:not_one",
        8,
        {},
        r"must be a model from token ids to logits of the next token; Functional takes "
        r"token_ids and gives \(None, 258\)",
    ),
    "no such function": ("nothing:f", 8, {}, "cannot be found"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_language_model(name, preset):
    given, length, arguments, said = REFUSED[name]
    with pytest.raises(errors.ModelError, match=said) as refused:
        causal_language.build(given or preset, length, **arguments)
    assert "\n" not in str(refused.value)


def test_a_preset_that_is_no_causal_lm(tmp_path):
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        intermediate_dim=4,
    )
    backbone.save_to_preset(str(tmp_path / "bert"))
    with pytest.raises(errors.ModelError, match="cannot be loaded: .*CausalLM") as said:
        causal_language.build(f"keras_hub:{tmp_path / 'bert'}", 8)
    assert "\n" not in str(said.value)


def test_more_tokens_than_the_model_knows():
    model = decoders.gpt2(keras_hub, vocabulary_size=200)
    with pytest.raises(errors.ModelError, match="gives 200 .* its tokenizer has 258"):
        causal_language.tokens("made", model)


def test_a_model_with_fewer_positions_than_usual_is_counted():
    """Coverage takes 64 tokens where a model does not say how many it takes."""
    assert mp_loop.coverage(decoders.gpt2(keras_hub), "float16").share == 1


# Training.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_shared_head_multiplies_in_16_bits(dtype):
    """Its logits and the gradient of its table are near those of float32."""
    keras.utils.set_random_seed(0)
    model = decoders.gpt2(keras_hub)
    twin = mp_loop.half_precision_twin(model, dtype)
    inputs, labels = batch(model)
    table = model.backbone.token_embedding.embeddings
    found = []
    for one in (model, twin):
        with tf.GradientTape() as tape:
            logits = one(inputs)
            loss = LOSS(labels, logits)
        grad = tf.convert_to_tensor(tape.gradient(loss, table.value))
        found.append([np.asarray(logits), np.asarray(grad)])
        assert logits.dtype == "float32"
    epsilon = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for exact, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, exact, atol=16 * epsilon * np.abs(exact).max())
    model.trainable = False  # the table is stored in 16 bits then
    frozen = mp_loop.half_precision_twin(model, dtype)
    assert dtype in {w.dtype for w in frozen.weights if w.name == "embeddings"}
    np.testing.assert_array_equal(frozen(inputs), found[1][0])


def test_generated_text_is_that_of_the_saved_model(preset, tmp_path):
    model = causal_language.build(preset, LENGTH)
    step = mp_loop.TrainStep(
        model,
        keras.optimizers.Adam(1e-2),
        LOSS,
        "bfloat16",
        clip_norm=1.0,
        recompute=True,
    )
    inputs, labels = batch(model)
    losses = [float(step(inputs, labels)["loss"]) for _ in range(25)]
    assert losses[-1] < 0.6 * losses[0]
    path = tmp_path / "model.keras"
    model.save(path)
    text = generated(model)
    assert text.startswith("the ") and len(text) > 4
    assert generated(keras.models.load_model(path)) == text
    again = causal_language.build(str(path), LENGTH)  # as --model takes it
    assert generated(again) == text


# Adapters.


def test_adapters_alone_are_trained_and_saved_within_their_kernels(preset, tmp_path):
    model = causal_language.build(preset, LENGTH)
    adapters.enable(model, 2)
    trainable_layers.TrainableLayers(model).everything()  # as the training loop does
    step = mp_loop.TrainStep(model, keras.optimizers.Adam(1e-2), LOSS, "bfloat16")
    names = {v.name for v in model.trainable_weights}
    assert names == {"lora_kernel_a", "lora_kernel_b"}
    # Two adapters of two matrices in each of two blocks; Adam has two slots for each.
    assert len(step.master_weights) == 8 == len(step.optimizer.variables[2:]) / 2
    frozen = [(v, np.array(v)) for v in model.non_trainable_weights]
    found = {v.path: w.dtype for v, w in pairs.of_weights(model, step.twin)}
    tables = [v for v in model.weights if v.name in ("kernel", "embeddings")]
    narrow = {v.path for v in tables if found[v.path] == "bfloat16"}
    # All but positions, which are looked up alone.
    assert {v.path for v in tables} - narrow == {"position_embedding/embeddings"}
    inputs, labels = batch(model)
    losses = [float(step(inputs, labels)["loss"]) for _ in range(10)]
    assert losses[-1] < losses[0]
    for variable, before in frozen:
        np.testing.assert_array_equal(variable, before)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(inputs), model(inputs), atol=1e-5)
    assert generated(again) == generated(model)


def test_a_model_without_attention_has_nothing_to_adapt():
    model = causal_language.build(f"{__name__}:own_model", LENGTH)
    with pytest.raises(errors.ModelError, match=r"`lora_rank` \(2\): .* no layer that"):
        adapters.enable(model, 2)


def test_a_layer_that_is_not_adapted_stays_trainable_if_it_is_new():
    inputs = keras.Input((4, 8))
    x = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    adapters.enable(model, 1, [trainable_layers.last(model)])
    assert [v.name for v in model.trainable_weights] == [
        *("lora_kernel_a", "lora_kernel_b") * 2,
        "kernel",
        "bias",
    ]
    before = [(v, v.trainable) for v in model.weights]
    layers = trainable_layers.TrainableLayers(model)
    layers.head_alone()
    layers.everything()
    assert [v.trainable for v, _ in before] == [trained for _, trained in before]
    twin = mp_loop.half_precision_twin(model, "float16")
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    np.testing.assert_allclose(twin(x), model(x), atol=0.02)
