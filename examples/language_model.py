"""A language model with adapters: `python examples/language_model.py [STEPS]`.

A small decoder learns to predict the next byte of this program, in a loop of its own;
then its adapters alone learn, in Keras' own `fit`. Any CausalLM of keras_hub will do.
"""

import pathlib
import sys

import keras
import numpy as np

import mp_loop
from mp_loop.data import sequences
from mp_loop.models import adapters, causal_language


def main(steps: int = 200) -> tuple[keras.Model, list[float]]:
    """Trains; returns the model, and the losses before, between and after."""
    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    model = causal_language.build("small_decoder", sequence_length=64)
    tokens = causal_language.tokens("small_decoder", model)
    rows = sequences.pack("this program", [text], tokens, length=64).rows
    batch = {"token_ids": rows[:, :-1], "padding_mask": np.ones_like(rows[:, :-1])}
    labels = rows[:, 1:]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss_now() -> float:
        return float(loss(labels, model(batch)))

    losses = [loss_now()]
    step = mp_loop.TrainStep(model, "adam", loss, "bfloat16", clip_norm=1.0)
    for _ in range(steps):
        step(batch, labels)
    losses.append(loss_now())

    adapters.enable(model, rank=4)
    model = mp_loop.for_fit(model, "bfloat16")
    model.compile(
        keras.optimizers.Adam(1e-3), loss, sampler="greedy", jit_compile=False
    )
    # The `fit` of keras_hub takes texts; these are tokens already.
    model.preprocessor, preprocessor = None, model.preprocessor
    model.fit(batch, labels, epochs=max(1, steps // 20), shuffle=False, verbose=2)
    model.preprocessor = preprocessor
    losses.append(loss_now())
    return model, losses


if __name__ == "__main__":
    trained, _ = main(*map(int, sys.argv[1:]))
    print(trained.generate("import ", max_length=64))
