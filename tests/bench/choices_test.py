"""What the benchmark accepts: arms, options and workloads."""

import pytest

from mp_loop.bench import choices
from mp_loop.config import comparison_arms, errors


def test_arms_are_read():
    arms = choices.parse_arms("keras:float32, custom:bfloat16+recompute+xla")
    assert arms == [
        comparison_arms.Arm("keras", "float32"),
        comparison_arms.Arm("custom", "bfloat16", ("recompute", "xla")),
    ]
    assert arms[1].name == "custom:bfloat16+recompute+xla"
    for text in (
        "keras:float32+tf32+xla",
        "torch:float16+compile",
        "floor:float16+xla",
    ):
        assert choices.parse_arms(text)[0].name == text


BAD_ARMS = {
    "unknown loop": ("keras:float32,jax:float16", "'jax:float16'"),
    "unknown precision": ("keras:float8", "'keras:float8'"),
    "unknown option": ("custom:float16+fast", "'custom:float16.fast'"),
    "empty": ("", "''"),
    "twice": ("custom:float16,custom:float16", "names custom:float16 twice"),
    "cannot recompute": ("keras:float16+recompute", "keras takes .*; not '.recompute'"),
    "torch with XLA": ("torch:float16+xla", "torch takes .compile, .tf32; not '.xla'"),
    "ours by torch": ("custom:float16+compile", "custom takes .*; not '.compile'"),
    "stream with options": ("stream:float16+xla", "stream takes no options"),
}


@pytest.mark.parametrize("name", BAD_ARMS)
def test_bad_arms_are_refused(name):
    text, said = BAD_ARMS[name]
    with pytest.raises(errors.UsageError, match=f"--arms .*{said}"):
        choices.parse_arms(text)


BAD_WORKLOADS = {
    "unknown": ("resnet20,lenet", "custom:float16", "not 'lenet'"),
    "no model": ("update20", "fit:float16", "update20 does not run on fit:float16"),
    "no update": ("cnn", "stream:float16", "cnn does not run on stream:float16"),
    "update with options": ("update20", "custom:float16+xla", "does not run on"),
}


@pytest.mark.parametrize("name", BAD_WORKLOADS)
def test_bad_workloads_are_refused(name):
    text, arms, said = BAD_WORKLOADS[name]
    with pytest.raises(errors.UsageError, match=f"--workloads .*{said}"):
        choices.parse_workloads(text, choices.parse_arms(arms))
