"""What a comparison is: its arms and their reference."""

import dataclasses

import pytest

from mp_loop.comparison import designs
from mp_loop.config import errors, settings

CUSTOM, KERAS = "custom:float16", "keras:float16"


def names(arms):
    return [arm.name for arm in arms]


ARMS = [
    pytest.param("", "float16", [CUSTOM, KERAS], id="default"),
    pytest.param("", "bfloat16", ["custom:bfloat16", "keras:bfloat16"], id="bfloat16"),
    pytest.param(
        "keras:float32, custom:float16",
        "float16",
        ["keras:float32", CUSTOM],
        id="named, in order",
    ),
]


@pytest.mark.parametrize(("text", "precision", "expected"), ARMS)
def test_arms(text, precision, expected):
    assert names(designs.parse_arms(text, precision)) == expected


BAD_ARMS = [
    pytest.param("custom", "not 'custom'", id="no precision"),
    pytest.param("torch:float16", "not 'torch:float16'", id="no such loop"),
    pytest.param("custom:int8", "not 'custom:int8'", id="no such precision"),
    pytest.param("custom:float16,", "not ''", id="a comma at the end"),
    pytest.param("custom:float16:x", "not 'custom:float16:x'", id="three parts"),
    pytest.param(f"{KERAS},{KERAS}", f"names {KERAS} twice", id="twice"),
]


@pytest.mark.parametrize(("text", "said"), BAD_ARMS)
def test_malformed_arms(text, said):
    with pytest.raises(errors.UsageError) as error:
        designs.parse_arms(text, "float16")
    assert f"--arms ({text})" in str(error.value)
    assert said in str(error.value)


REFERENCES = [
    pytest.param("custom:float16,keras:float32,keras:float16", "keras:float32", id="K"),
    pytest.param("custom:float16,custom:float32", "custom:float16", id="no Keras arm"),
]


@pytest.mark.parametrize(("text", "expected"), REFERENCES)
def test_the_reference_is_the_first_keras_arm(text, expected):
    assert designs.reference(designs.parse_arms(text, "float16")).name == expected


def design(repeats=2, text="", **values):
    config = settings.Config.of(output_dir="out", **values)
    arms = designs.parse_arms(text, config.precision.precision)
    return designs.Design(config, tuple(arms), repeats, margin=0.01)


def test_a_design_is_read_as_it_was_written(tmp_path):
    before = design(seed=7, head_epochs=0).revised().revised()
    assert len(before.revisions) == 1  # nothing was decided anew
    before.write(tmp_path)
    assert designs.Design.read(tmp_path) == before


def test_what_is_decided_later_is_noted():
    before = design().revised()
    later = dataclasses.replace(before, repeats=5).revised(after_results=True)
    assert [(one.repeats, one.after_results) for one in later.revisions] == [
        (2, False),
        (5, True),
    ]
