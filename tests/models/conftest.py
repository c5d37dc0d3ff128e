"""A small network without its top, and the file it is saved in."""

import keras
import pytest


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A small convolutional network without its top, and the file it is saved in."""
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="stem"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Conv2D(6, 3, name="block"),
        ]
    )
    path = tmp_path_factory.mktemp("backbone") / "features.keras"
    model.save(path)
    return model, str(path)
