"""Which layers are trained."""

import keras
import pytest

from mp_loop.config import errors
from mp_loop.models import heads, trainable_layers


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_freeze_finds_layers_by_name(backbone, nested):
    features = keras.models.clone_model(backbone[0])
    inputs = keras.Input((8, 8, 3))
    outer = keras.Model(inputs, features(inputs)) if nested else features
    model = heads.with_head(outer, 3)
    trainable_layers.freeze(model, "^stem$|norm")
    assert {v.path.split("/")[-2] for v in model.trainable_weights} == {
        "block",
        "logits",
    }


@pytest.mark.parametrize(
    ("pattern", "law"),
    [("absent", "matches no layer"), (".", "leaves nothing to train")],
)
def test_freezing_nothing_or_everything_is_refused(pattern, law, backbone):
    model = heads.with_head(keras.models.clone_model(backbone[0]), 3)
    with pytest.raises(errors.ModelError, match=law):
        trainable_layers.freeze(model, pattern)


def test_the_head_alone_and_then_everything_again(backbone):
    model = heads.with_head(keras.models.clone_model(backbone[0]), 3)
    trainable_layers.freeze(model, "norm")
    before = [v.path for v in model.trainable_weights]
    trained = trainable_layers.TrainableLayers(model)
    trained.head_alone()
    assert [v.path for v in model.trainable_weights] == ["logits/kernel", "logits/bias"]
    trained.everything()
    assert [v.path for v in model.trainable_weights] == before


def test_a_model_that_is_all_head_has_no_head_phase():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(errors.ModelError, match="nothing to train but its last"):
        trainable_layers.TrainableLayers(model).head_alone()
