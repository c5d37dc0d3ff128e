"""The settings of an experiment as one frozen, checked value of sections.

    config = Config.of(precision="bfloat16", epochs=3)   # ValueError if not valid
    config.training.epochs                               # 3
    config = config.replace(epochs=4)

    declare_flags(flags.FLAGS)                           # one flag per setting
    config = Config.from_flags(flags.FLAGS)
    pathlib.Path("exp.flags").write_text(config.to_flagfile())

Sections order the settings for programs; for users names are flat: a flag, a line of
a flagfile and an argument of `Config.of` have the setting's own name.
"""

from __future__ import annotations

import dataclasses
import types
from typing import TYPE_CHECKING

from mp_loop.config import choices, fields, rules, run_sections, sections

if TYPE_CHECKING:
    from absl import flags


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run.

    Raises:
      ValueError: a value is not valid, or two settings contradict each other; the
        message names the flag, its value and what is allowed.
    """

    data: sections.Data = sections.Data()
    model: sections.Model = sections.Model()
    precision: sections.Precision = sections.Precision()
    scale: sections.Scale = sections.Scale()
    optimizer: sections.Optimizer = sections.Optimizer()
    training: run_sections.Training = run_sections.Training()
    parallel: run_sections.Parallel = run_sections.Parallel()
    records: run_sections.Records = run_sections.Records()

    def __post_init__(self) -> None:
        rules.check(
            types.SimpleNamespace(
                **self.values(),
                loss_scale_kind=self.loss_scale_kind,
                trained_by=self.model.trained_by,
                constants=self.scale.constants,
            )
        )

    @classmethod
    def of(cls, **values: fields.Value) -> Config:
        """Makes it from settings by name; the others have their defaults."""
        by_section = _by_section(values)
        made = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        return cls(**{name: made[name](**part) for name, part in by_section.items()})

    def replace(self, **values: fields.Value) -> Config:
        """Returns it with other values of these settings."""
        changed = {
            name: dataclasses.replace(getattr(self, name), **part)
            for name, part in _by_section(values).items()
        }
        return dataclasses.replace(self, **changed)

    def as_begun(self) -> Config:
        """Returns it without what only a resume is told."""
        return self.replace(resume=False, change_precision=False, change_schedule=False)

    def values(self) -> dict[str, fields.Value]:
        """All settings by name, in the order of the sections."""
        return {
            name: getattr(getattr(self, section), name)
            for name, section in _SECTIONS.items()
        }

    @property
    def loss_scale_kind(self) -> str:
        """`dynamic`, `static` or `none`, the default resolved."""
        if self.scale.loss_scale is not None:
            return self.scale.loss_scale
        # auto may become float16.
        may_be_float16 = self.precision.precision in ("float16", "auto")
        return "dynamic" if may_be_float16 else "none"

    def at_precision(self, precision: str) -> Config:
        """Puts a precision in the place of auto.

        Where that precision does not scale the loss and --loss_scale was not given,
        the constants of the scale are dropped: they were meant for float16.
        """
        scale = self.scale
        if precision != "float16" and scale.loss_scale is None:
            scale = sections.Scale()
        own = dataclasses.replace(self.precision, precision=precision)
        return dataclasses.replace(self, precision=own, scale=scale)

    def to_flagfile(self) -> str:
        """Flags that replay this run, one per line; what is None is left out."""
        lines = []
        for name, value in self.values().items():
            if isinstance(value, bool):
                lines.append(f"--{name}" if value else f"--no{name}")
            elif value is not None:
                lines.append(f"--{name}={value}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_flagfile(cls, text: str) -> Config:
        """Reads what `to_flagfile` returned, of this version or another.

        Flags that are no settings are left out; nothing else is opened.

        Raises:
          ValueError: a value is not valid.
        """
        from absl import flags

        flag_values = flags.FlagValues()
        declare_flags(flag_values)
        lines = [line for line in text.splitlines() if line.startswith("--")]
        names = (line.removeprefix("--").partition("=")[0] for line in lines)
        known = [
            line
            for line, name in zip(lines, names, strict=True)
            if name in FIELDS or name.removeprefix("no") in FIELDS
        ]
        try:
            flag_values(["", *known])
        except flags.Error as error:
            raise ValueError(str(error)) from error
        return cls.from_flags(flag_values)

    @classmethod
    def from_flags(cls, flag_values: flags.FlagValues) -> Config:
        """Reads parsed absl flags declared by `declare_flags`."""
        return cls.of(**{name: getattr(flag_values, name) for name in FIELDS})


# The section that each setting is in.
_SECTIONS = {
    field.name: section.name
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.default)
}
# How each setting is declared, by name.
FIELDS = {
    field.name: field
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.default)
}


def groups() -> dict[str, list[str]]:
    """The settings by what they are about: those that matter first, then the others."""
    found = {"What matters first": list(choices.FIRST)}
    for section in dataclasses.fields(Config):
        title = (type(section.default).__doc__ or "").partition(":")[0]
        names = (field.name for field in dataclasses.fields(section.default))
        found[title] = [name for name in names if name not in choices.FIRST]
    return found


def _by_section(values: dict[str, fields.Value]) -> dict[str, dict[str, fields.Value]]:
    """Sorts settings into their sections; raises TypeError for an unknown name."""
    sorted_values: dict[str, dict[str, fields.Value]] = {}
    for name, value in values.items():
        if name not in _SECTIONS:
            raise TypeError(f"`{name}` is not a setting.")
        sorted_values.setdefault(_SECTIONS[name], {})[name] = value
    return sorted_values


def declare_flags(flag_values: flags.FlagValues) -> None:
    """Declares one absl flag for each setting on `flag_values`."""
    from absl import flags  # Commands own the flags; nothing else needs absl.

    for name, field in FIELDS.items():
        help_text, choices = field.metadata["help"], field.metadata["valid"].choices
        if isinstance(field.default, bool) and choices:
            _define_switch_or_word(name, field.default, help_text, choices, flag_values)
            continue
        if choices:
            help_text += f" One of: {', '.join(filter(None, choices))}."
        define = flags.DEFINE_string
        if isinstance(field.default, bool):
            define = flags.DEFINE_bool
        elif field.type.startswith("int"):
            define = flags.DEFINE_integer
        elif field.type.startswith("float"):
            define = flags.DEFINE_float
        define(name, field.default, help_text, flag_values=flag_values)


def _define_switch_or_word(
    name: str,
    default: bool,
    help_text: str,
    choices: tuple[str, ...],
    flag_values: flags.FlagValues,
) -> None:
    """Declares a flag that is --name, --noname, or --name=word."""
    from absl import flags

    class Parser(flags.BooleanParser):
        def parse(self, argument: str | bool) -> bool | str:
            return argument if argument in choices else super().parse(argument)

    flag = flags.BooleanFlag(name, default, help_text)
    flag.parser = Parser()
    flags.DEFINE_flag(flag, flag_values)
