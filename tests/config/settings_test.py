"""The experiment's laws, and its way to flags and back."""

import dataclasses

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from mp_loop.cli import app
from mp_loop.config import settings

REFUSED = {
    "choice": ({"precision": "float8"}, "--precision (float8) must be one of: float16"),
    "range": ({"batch_size": 0}, "--batch_size (0) must be at least 1."),
    "below": ({"backoff_factor": 1.0}, "--backoff_factor (1.0) must be less than 1."),
    "above": ({"growth_factor": 1.0}, "--growth_factor (1.0) must be greater than 1."),
    "most": ({"seed": 2**31}, "--seed (2147483648) must be at most 2147483647."),
    "nan": ({"learning_rate": float("nan")}, "--learning_rate (nan) must be finite."),
    "inf": ({"initial_scale": float("inf")}, "--initial_scale (inf) must be finite."),
    "lines": ({"model": "a\nb"}, "--model ('a\\nb') must be a single line."),
    "preset_without_scaling": (
        {"precision": "float32", "scale_preset": "torch"},
        "--scale_preset (torch) needs dynamic loss scaling, not none",
    ),
    "constant_without_scaling": (
        {"precision": "bfloat16", "growth_interval": 5},
        "--growth_interval (5) has no meaning when the loss scaling is none",
    ),
    "static_needs_a_scale": (
        {"loss_scale": "static"},
        "--loss_scale (static) needs --initial_scale.",
    ),
    "keras_has_no_floor": (
        {"loop": "keras", "min_scale": 1.0},
        "--min_scale (1.0) cannot be expressed by Keras' LossScaleOptimizer",
    ),
    "keras_has_no_growth_factor": (
        {"loop": "keras", "growth_factor": 4.0},
        "--growth_factor (4.0) cannot be expressed by Keras' LossScaleOptimizer",
    ),
    "keras_preset": (
        {"loop": "keras", "scale_preset": "flax"},
        "--scale_preset (flax) cannot be expressed",
    ),
    "keras_islands": (
        {"loop": "keras", "float32_layers": "x"},
        "--float32_layers (x) is not available with --loop=keras.",
    ),
    "keras_accumulation": (
        {"loop": "keras", "accumulate_steps": 2},
        "--accumulate_steps (2) is not available with --loop=keras",
    ),
    "uneven_split": (
        {"batch_size": 10, "accumulate_steps": 3},
        "--accumulate_steps (3) must divide --batch_size (10).",
    ),
    "decay_of_adam": (
        {"weight_decay": 0.1},
        "--weight_decay (0.1) needs --optimizer=adamw, not adam.",
    ),
    "strategy of keras": (
        {"strategy": "mirrored", "loop": "keras"},
        "--strategy (mirrored) is not available with --loop=keras.",
    ),
    "strategy in Keras' arithmetic": (
        {"strategy": "mirrored", "keras_arithmetic": True},
        "--strategy (mirrored) contradicts --keras_arithmetic",
    ),
    "strategy under XLA": (
        {"strategy": "mirrored", "jit_compile": "on"},
        "--jit_compile (on) is not available with --strategy=mirrored.",
    ),
    "rollback of many workers": (
        {"strategy": "multi_worker", "rollback": 1},
        "--rollback (1) is not available with --strategy=multi_worker",
    ),
    "float16 messages of float32": (
        {"strategy": "mirrored", "all_reduce_dtype": "float16", "precision": "float32"},
        "--all_reduce_dtype (float16) needs --precision=float16",
    ),
    "messages to nobody": (
        {"all_reduce_dtype": "float16"},
        "--all_reduce_dtype (float16) needs --precision=float16",
    ),
    "synchronized micro-batches": (
        {"strategy": "mirrored", "sync_batch_norm": True, "accumulate_steps": 2},
        "--sync_batch_norm (True) is not available with --accumulate_steps (2)",
    ),
    "fractions": ({"decay_at": "0.5,0.5"}, "--decay_at (0.5,0.5) must be rising"),
    "no_fractions": ({"decay_at": "half"}, "--decay_at (half) must be rising"),
    "no stretch": ({"profile_steps": "5"}, "--profile_steps (5) must be A:B"),
    "empty stretch": ({"profile_steps": "5:5"}, "--profile_steps (5:5) must be A:B"),
    "turned": ({"profile_steps": "8:4"}, "--profile_steps (8:4) must be A:B"),
    "pattern": ({"float32_layers": "("}, "--float32_layers (() must be a regular"),
    "frozen": ({"freeze": "["}, "--freeze ([) must be a regular"),
    "crop": ({"crop_pct": 0.875}, "--crop_pct (0.875) needs --image_size."),
    "all head": (
        {"head_epochs": 5, "epochs": 5},
        "--head_epochs (5) must be fewer than --epochs (5).",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unlawful_settings_are_refused_in_one_line(name):
    config, message = REFUSED[name]
    with pytest.raises(ValueError) as error:
        settings.Config.of(**config)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_default_is_lawful_and_frozen():
    config = settings.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.epochs = 3
    assert config.loss_scale_kind == "dynamic"
    assert settings.Config.of(precision="bfloat16").loss_scale_kind == "none"


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
