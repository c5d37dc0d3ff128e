"""The settings of two loops that take the same steps."""

import pytest

from mp_loop.comparison import side_by_side
from mp_loop.config import errors, settings

KINDS = [
    pytest.param({}, "keras", id="dynamic"),
    pytest.param({"precision": "float32"}, "", id="none"),
]


@pytest.mark.parametrize(("values", "preset"), KINDS)
def test_both_loops_compute_the_same(values, preset):
    config = settings.Config.of(output_dir="o", epochs=3, **values)
    ours, theirs = side_by_side.configs(config)
    assert ours == config.replace(
        loop="custom",
        keras_arithmetic=True,
        deterministic=True,
        jit_compile="off",
        **({"scale_preset": preset} if preset else {}),
    )
    assert theirs == config.replace(loop="keras", deterministic=True, jit_compile="off")


def test_a_compiler_that_was_asked_for_is_used():
    ours, theirs = side_by_side.configs(settings.Config.of(jit_compile="on"))
    assert (ours.training.jit_compile, theirs.training.jit_compile) == ("on", "on")


def test_what_keras_lacks_is_refused():
    config = settings.Config.of(accumulate_steps=2, batch_size=4)
    with pytest.raises(errors.UsageError, match="--accumulate_steps"):
        side_by_side.configs(config)
