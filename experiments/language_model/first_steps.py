"""The first steps of many seeds: each loop and precision from the same weights.

python experiments/language_model/first_steps.py SEEDS STEPS LOOP:PRECISION ...

Seed k has initial weights of its own and begins with epoch k of the shuffled sentences.
Prints, for every seed, the loss of every arm: means of 25 steps, and the largest.
"""

import itertools
import pathlib
import sys

import keras
import numpy as np

from mp_loop.cli import app
from mp_loop.models import causal_language
from mp_loop.run import build, experiment

FLAGS = pathlib.Path(__file__).with_name("sentences.flags")


def make(arm: str) -> experiment.Experiment:
    """Makes the experiment of the record's third run."""
    loop, precision = arm.split(":")
    words = [f"--flagfile={FLAGS}", f"--loop={loop}", f"--precision={precision}"]
    words += ["--learning_rate=3e-3", "--warmup_steps=200", "--steps=1600"]
    config, _ = app.parse(["train", *words])
    return build.from_settings(config)


class Arm:
    """An experiment that begins anew with other weights."""

    def __init__(self, name: str):
        self.experiment = make(name)
        step = self.experiment.step
        self._variables = [*step.state.variables, *step.optimizer.variables]
        self._values = [variable.numpy() for variable in self._variables]

    def losses(self, weights: list[np.ndarray], batches: list) -> np.ndarray:
        """Trains from these weights; returns the loss of each batch."""
        step = self.experiment.step
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)
        self.experiment.model.set_weights(weights)
        if hasattr(step, "reload"):
            step.reload()  # ours copies its masters
        else:
            step.twin.set_weights(weights)
        return np.array([step(*batch)["loss"] for batch in batches])


def main(seeds: str, steps: str, *names: str) -> None:
    """Prints a line for each seed and arm."""
    arms = {name: Arm(name) for name in names}
    data = arms[names[0]].experiment
    for seed in range(int(seeds)):
        keras.utils.set_random_seed(seed)
        weights = causal_language.small_decoder(
            data.source.input_shape[0]
        ).get_weights()
        epochs = itertools.chain.from_iterable(map(data.batches, itertools.count(seed)))
        batches = list(itertools.islice(epochs, int(steps)))
        for name, arm in arms.items():
            losses = arm.losses(weights, batches)
            means = [
                f"{part.mean():.3f}"
                for part in np.split(losses, range(25, len(losses), 25))
            ]
            print(seed, name, *means, f"at most {losses.max():.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
