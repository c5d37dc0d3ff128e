"""What is compared: medians, ranges, paired ratios and differences of all runs.

    comparison = compare({"custom:float16": summaries, ...}, "keras:float16", 0.005)

Runs of equal repeat are paired, as they have the same seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from mp_loop.comparison import equivalence
from mp_loop.config import json_values
from mp_loop.rendering import numbers
from mp_loop.run import records

Summary = json_values.Object  # what summary.json of a run holds


@dataclasses.dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
      name: the key in summary.json.
      title: of the row.
      show: makes a cell of a value.
      ratio: whether a second row shows each run divided by the reference's run of the
        same repeat.
    """

    name: str
    title: str
    show: Callable[[float], str]
    ratio: bool = False


_ALWAYS = (
    Measure("eval_loss", "loss", "{:.4f}".format),
    Measure("skipped_steps", "skipped steps", "{:g}".format),
    Measure("final_loss_scale", "final loss scale", numbers.power_of_two),
    Measure("milliseconds_per_step", "ms/step", "{:.2f}".format, ratio=True),
    Measure("examples_per_second", "examples/s", "{:.0f}".format, ratio=True),
    Measure(
        "peak_memory_bytes",
        "peak memory, MiB",
        lambda value: f"{value / 2**20:.0f}",
        ratio=True,
    ),
)
NEEDED = tuple(measure.name for measure in _ALWAYS)  # values of a summary


def of_metric(key: str) -> tuple[Measure, ...]:
    """The rows of the table; the first is the metric of that key in summary.json."""
    return (Measure(key, records.metric_title(key), "{:.4f}".format), *_ALWAYS)


def compare(
    summaries: Mapping[str, Sequence[Summary]], reference: str, margin: float = 0.0
) -> dict[str, json_values.Json]:
    """Reduces the summaries of all runs to medians, ranges and paired ratios.

    Of two repeats or more, each arm but the reference gets its paired differences in
    the metric as well, and the test of its equivalence.

    Args:
      summaries: for each arm its summaries, one per repeat, in order.
      reference: the arm whose runs the ratios divide by.
      margin: the largest difference in the metric that counts as none; 0: no test.

    Returns:
      `{"reference": arm, "margin": margin, "metric": key, "arms": {arm: {"runs":
      [...], "measures": {name: spread}, "ratios": {name: spread}, "difference":
      fields of `equivalence.Equivalence`}}}`, a spread being `median`, `min` and `max`
      over the repeats.
    """
    metric = records.metric_key(summaries[reference][0])
    arms = {
        arm: _compare_runs(runs, summaries[reference], of_metric(metric))
        for arm, runs in summaries.items()
    }
    for name, arm in arms.items():
        if name != reference and len(arm["runs"]) > 1:
            pairs = zip(arm["runs"], summaries[reference], strict=True)
            differences = [run[metric] - by[metric] for run, by in pairs]
            result = equivalence.paired(differences, margin)
            arm["difference"] = dataclasses.asdict(result)
    return {"reference": reference, "margin": margin, "metric": metric, "arms": arms}


def _compare_runs(
    runs: Sequence[Summary],
    reference_runs: Sequence[Summary],
    measures: Sequence[Measure],
) -> dict[str, json_values.Json]:
    pairs = list(zip(runs, reference_runs, strict=True))
    return {
        "measures": {
            measure.name: numbers.spread([run[measure.name] for run in runs])
            for measure in measures
        },
        "ratios": {
            measure.name: numbers.spread(
                [_ratio(run[measure.name], by[measure.name]) for run, by in pairs]
            )
            for measure in measures
            if measure.ratio
        },
        "runs": [dict(run) for run in runs],
    }


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan
