"""Settings as one value, and their way to flags and back."""

import dataclasses

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from mp_loop.cli import app
from mp_loop.config import settings

CROSSENTROPY = "sparse_categorical_crossentropy"


def test_the_default_is_valid_and_frozen():
    config = settings.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.epochs = 3
    assert config.loss_scale_kind == "dynamic"
    assert settings.Config.of(precision="bfloat16").loss_scale_kind == "none"


def test_settings_are_flat_by_name_and_grouped_by_section():
    config = settings.Config.of(epochs=3, model="mlp")
    assert (config.training.epochs, config.model.model) == (3, "mlp")
    assert config.values()["epochs"] == 3
    assert list(config.values()) == list(settings.FIELDS)
    changed = config.replace(epochs=4, precision="bfloat16")
    assert changed == settings.Config.of(epochs=4, model="mlp", precision="bfloat16")
    assert config.training.epochs == 3


@pytest.mark.parametrize("make", [settings.Config.of, settings.Config().replace])
def test_an_unknown_setting_is_an_error_of_the_program(make):
    with pytest.raises(TypeError, match="`epoch` is not a setting"):
        make(epoch=3)


def test_every_setting_has_a_name_of_its_own():
    sections = [field.default for field in dataclasses.fields(settings.Config)]
    names = [f.name for section in sections for f in dataclasses.fields(section)]
    assert len(set(names)) == len(names) == len(settings.FIELDS)


def test_auto_takes_the_constants_of_a_scale_and_drops_them_where_there_is_none():
    auto = settings.Config.of(precision="auto", growth_interval=7, scale_preset="torch")
    assert auto.loss_scale_kind == "dynamic"
    plain = settings.Config.of(precision="bfloat16")
    assert auto.at_precision("bfloat16") == plain
    kept = settings.Config.of(growth_interval=7, scale_preset="torch")
    assert auto.at_precision("float16") == kept
    given = settings.Config.of(precision="auto", loss_scale="static", initial_scale=8.0)
    assert given.at_precision("bfloat16").scale.initial_scale == 8.0


@given(
    rate=st.floats(1e-30, 1e30),
    scale=st.none() | st.floats(2.0**-14, 2.0**24),
    seed=st.integers(0, 2**31 - 1),
    model=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1),
    resume=st.booleans(),
)
def test_a_flagfile_replays_the_settings_exactly(
    tmp_path_factory, rate, scale, seed, model, resume
):
    config = settings.Config.of(
        learning_rate=rate,
        initial_scale=scale,
        seed=seed,
        model=model,
        resume=resume,
    )
    path = tmp_path_factory.mktemp("flags") / "exp.flags"
    path.write_text(config.to_flagfile())
    assert app.parse(["train", f"--flagfile={path}"])[0] == config


@pytest.mark.parametrize(
    ("task", "loss", "metric"),
    [
        ("classification", CROSSENTROPY, "sparse_categorical_accuracy"),
        ("causal_lm", CROSSENTROPY, "perplexity"),
        ("regression", "mse", "mean_absolute_error"),
    ],
)
def test_loss_and_metric_follow_from_the_task(task, loss, metric):
    model = settings.Config.of(task=task).model
    assert (model.trained_by, model.measured_by) == (loss, metric)
    # Flagfiles of earlier versions name the loss.
    named = settings.Config.of(task=task, loss="huber", metric="mse").model
    assert (named.trained_by, named.measured_by) == ("huber", "mse")


def test_a_later_flag_overrides_the_flagfile(tmp_path):
    path = tmp_path / "exp.flags"
    path.write_text("# A comment.\n--epochs=3\n--precision=bfloat16\n")
    parsed, _ = app.parse(["train", f"--flagfile={path}", "--epochs=4"])
    assert (parsed.training.epochs, parsed.precision.precision) == (4, "bfloat16")


def test_every_field_has_one_flag_with_its_default():
    values = flags.FlagValues()
    settings.declare_flags(values)
    defaults = settings.Config().values()
    assert {name: values[name].default for name in values} == defaults


def test_every_setting_is_in_one_group():
    groups = settings.groups()
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(settings.FIELDS)
    assert len(next(iter(groups.values()))) == 10


def test_a_flagfile_is_read_back_without_what_is_no_setting():
    config = settings.Config.of(model="a b", recompute=True, explain_skips=False)
    text = config.to_flagfile()
    others = "# a comment\n--flagfile=/dev/zero\n--of_another_version=3\n--noneither\n"
    assert settings.Config.from_flagfile(others + text) == config
    with pytest.raises(ValueError, match="epochs"):
        settings.Config.from_flagfile("--epochs=many")
    with pytest.raises(ValueError, match="batch_size"):
        settings.Config.from_flagfile("--batch_size=0")
