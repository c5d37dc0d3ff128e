"""Unknown flags: which flags were probably meant."""

import pytest

from mp_loop.cli import app, flag_hints
from mp_loop.config import errors, settings

MEANT = {
    "lr": "--learning_rate",
    "wd": "--weight_decay",
    "sead": "--seed",
    "epoch": "--epochs",
    "num_epochs": "--epochs",
    "batch-size": "--batch_size",
    "out_dir": "--output_dir",
    "bf16": "--precision=bfloat16",
    "warmup": "--warmup_steps",
    "early_stopping": "--best_by",
}


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_is_named(name):
    assert MEANT[name] in flag_hints.of(name, settings.FIELDS)


def test_nothing_is_named_where_nothing_is_close():
    assert flag_hints.of("xyzzy", settings.FIELDS) == ""


def test_the_command_line_names_it():
    with pytest.raises(errors.UsageError) as error:
        app.parse(["train", "--lr=0.1"])
    assert str(error.value) == "Unknown flag --lr. Did you mean: --learning_rate?"
