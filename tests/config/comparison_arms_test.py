"""Arms: their names, and how `--arms` is read."""

import pytest

from mp_loop.config import comparison_arms, errors

LOOPS, OPTIONS = ("custom", "keras"), ("xla", "tf32")


def test_names():
    arm = comparison_arms.Arm("custom", "float16", ("xla", "tf32"))
    assert (arm.name, arm.slug) == (
        "custom:float16+xla+tf32",
        "custom-float16+xla+tf32",
    )


def test_arms_are_read_as_they_are_named():
    text = "custom:float16+tf32,keras:float32"
    arms = comparison_arms.parse(text, LOOPS, OPTIONS)
    assert ",".join(arm.name for arm in arms) == text


REFUSED = [
    pytest.param("torch:float16", OPTIONS, "loops: custom, keras", id="loop"),
    pytest.param("keras:float8", OPTIONS, "precisions: ", id="precision"),
    pytest.param("keras:float16+fast", OPTIONS, "options: xla, tf32", id="option"),
    pytest.param("keras:float16+xla", (), "loop:precision, not", id="no options"),
    pytest.param("keras:float16, keras:float16", (), "twice", id="twice"),
]


@pytest.mark.parametrize(("text", "options", "said"), REFUSED)
def test_what_is_not_allowed_is_refused(text, options, said):
    with pytest.raises(errors.UsageError) as error:
        comparison_arms.parse(text, LOOPS, options)
    assert f"--arms ({text})" in str(error.value) and said in str(error.value)
