"""What a comparison is: arms, repeats, margin and settings.

    design = Design(config, arms, repeats=5, margin=0.005).revised()
    design.write(folder)                      # before the first run
    design = extended(Design.read(folder), config, flag_values)    # --resume

A design is written down before the first run, so that nobody, the author included,
can choose margin and repeats by the results.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import pathlib
from collections.abc import Sequence

from absl import flags

from mp_loop.cli import app, resume
from mp_loop.config import choices, comparison_arms, errors, settings
from mp_loop.run import files, strict_json

FILE = "design.json"

# What a resumed comparison may change besides arms and repeats: no result depends
# on it.
_MAY_CHANGE = ("data_dir", "output_dir", "quiet", "resume")


@dataclasses.dataclass(frozen=True)
class Revision:
    """Arms and repeats as they were decided at one time.

    Attributes:
      date: of the decision, ISO 8601.
      arms: their names.
      repeats: of each arm.
      after_results: whether a table of fewer runs existed at that time.
    """

    date: str
    arms: tuple[str, ...]
    repeats: int
    after_results: bool = False


@dataclasses.dataclass(frozen=True)
class Design:
    """What a comparison is; written down before its first run.

    Attributes:
      config: of every run, apart from what its arm and repeat change.
      arms: in the order of the table.
      repeats: of each arm.
      margin: the largest difference in accuracy that counts as none; 0: no test.
      revisions: how arms and repeats came to be what they are.

    Raises:
      UsageError: the margin cannot be tested.
    """

    config: settings.Config
    arms: tuple[comparison_arms.Arm, ...]
    repeats: int
    margin: float = 0.0
    revisions: tuple[Revision, ...] = ()

    def __post_init__(self) -> None:
        said = f"--margin ({self.margin:g})"
        if not math.isfinite(self.margin):
            raise errors.UsageError(f"{said} must be finite.")
        if self.margin and self.repeats < 2:
            raise errors.UsageError(
                f"{said} needs --repeats ({self.repeats}) of at least 2: one pair of "
                "runs has no spread to test with."
            )
        if self.margin and len(self.arms) < 2:
            raise errors.UsageError(
                f"{said} needs --arms ({self.arms[0].name}) of at least 2: there is "
                "nothing to compare with the reference."
            )

    @property
    def reference(self) -> comparison_arms.Arm:
        """The arm that the others are compared with."""
        return reference(self.arms)

    def revised(self, after_results: bool = False) -> Design:
        """Notes arms and repeats as decided now, unless the last revision has them."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
        names = tuple(arm.name for arm in self.arms)
        revision = Revision(now, names, self.repeats, after_results)
        if self.revisions:
            last = self.revisions[-1]
            if (last.arms, last.repeats) == (revision.arms, revision.repeats):
                return self
        return dataclasses.replace(self, revisions=(*self.revisions, revision))

    def write(self, folder: pathlib.Path) -> None:
        """Writes design.json."""
        text = strict_json.to_document(
            {
                "margin": self.margin,
                "reference": self.reference.name,
                "stages": [dataclasses.asdict(revision) for revision in self.revisions],
                "flags": self.config.to_flagfile().splitlines(),
            }
        )
        output_dir = self.config.records.output_dir
        with errors.bad_input(OSError, flag="output_dir", value=output_dir):
            files.write_atomically(folder / FILE, text)

    @classmethod
    def read(cls, folder: pathlib.Path) -> Design:
        """Reads design.json.

        Raises:
          UsageError: the file is missing, or is not the design of a comparison.
        """
        path = folder / FILE
        try:
            return cls._from_json(json.loads(files.read_regular(path)[0]))
        except FileNotFoundError:
            raise errors.UsageError(
                f"--output_dir ({folder}) holds no comparison to resume."
            ) from None
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise errors.UsageError(
                f"{path} is not the design of a comparison: {errors.one_line(error)}"
            ) from error

    @classmethod
    def _from_json(cls, found: dict) -> Design:
        revisions = tuple(
            Revision(**{**stage, "arms": tuple(stage["arms"])})
            for stage in found["stages"]
        )
        last = revisions[-1]
        config, _ = app.parse(["compare", *found["flags"]])
        arms = parse_arms(",".join(last.arms), config.precision.precision)
        margin = float(found["margin"])
        return cls(config, tuple(arms), int(last.repeats), margin, revisions)


def parse_arms(text: str, precision: str) -> list[comparison_arms.Arm]:
    """Reads `--arms`; an empty text stands for both loops at a precision.

    Raises:
      UsageError: an arm is malformed or named twice.
    """
    both = f"custom:{precision},keras:{precision}"
    return comparison_arms.parse(text or both, choices.LOOPS)


def reference(arms: Sequence[comparison_arms.Arm]) -> comparison_arms.Arm:
    """The arm that others are compared with: the first Keras arm, or the first."""
    return next((arm for arm in arms if arm.loop == "keras"), arms[0])


def extended(
    before: Design, config: settings.Config, flag_values: flags.FlagValues
) -> Design:
    """The design of a resumed comparison: as it was, and what the flags add.

    Args:
      before: as it was written down.
      config: what the command line says.
      flag_values: parsed flags, which tell which of them were given.

    Raises:
      UsageError: a flag contradicts what was written down.
    """
    if config.precision.precision == "auto":
        config = config.at_precision(before.config.precision.precision)
    given = resume.settings_given(config, flag_values)
    fixed = before.config.values() | {"margin": before.margin}
    added = {"margin": flag_values.margin} if flag_values["margin"].present else {}
    resume.refuse_changes(fixed, given | added, _MAY_CHANGE, "comparison")
    return dataclasses.replace(
        before,
        config=before.config.replace(**(given | {"resume": False})),
        arms=_extended_arms(before, flag_values),
        repeats=_extended_repeats(before, flag_values),
    )


def _extended_repeats(before: Design, flag_values: flags.FlagValues) -> int:
    if not flag_values["repeats"].present:
        return before.repeats
    if flag_values.repeats < before.repeats:
        raise errors.UsageError(
            f"--repeats ({flag_values.repeats}) must be at least {before.repeats}, as "
            "in the comparison to be resumed."
        )
    return flag_values.repeats


def _extended_arms(
    before: Design, flag_values: flags.FlagValues
) -> tuple[comparison_arms.Arm, ...]:
    if not flag_values["arms"].present:
        return before.arms
    arms = tuple(parse_arms(flag_values.arms, before.config.precision.precision))
    missing = [arm.name for arm in before.arms if arm not in arms]
    if missing:
        raise errors.UsageError(
            f"--arms ({flag_values.arms}) must name {', '.join(missing)} too, as in "
            "the comparison to be resumed."
        )
    if reference(arms) != before.reference:
        raise errors.UsageError(
            f"--arms ({flag_values.arms}) must keep {before.reference.name} as the "
            f"reference, not {reference(arms).name}."
        )
    return arms
