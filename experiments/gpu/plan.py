"""What one visit to a GPU does, in order of importance: stages, goals, data.

A stage is one command of the project in a process of its own. Workloads, arms and
goals are named here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command and its share of the time.

    Attributes:
      name: of its folder.
      kind: "machine", "command", "tests", "benchmark" or "comparison": how its results
        are read.
      words: the command, after `python -m`. `{folder}` is where its results go, and
        `{start}` the seconds in which it should have started what it measures.
      weight: its share of the time that is left, against the weights of the stages
        after it.
      needs: why it cannot run with these flags; empty: it can.
    """

    name: str
    kind: str
    words: Sequence[str]
    weight: float
    needs: str = ""


@dataclasses.dataclass(frozen=True)
class Goal:
    """A ratio of two arms that is to be reached: time and step memory."""

    workload: str
    arm: str
    against: str
    time: float | None
    memory: float


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Where the real data are.

    Attributes:
      tiny: small models on the data of the package, to see that every stage runs.
      data_dir: folder of TFDS with grocery_fruit and rotten_tomatoes.
      vision_model: MobileNetV2 with ImageNet weights, without its top: a .keras file.
      text_model: folder of a preset of keras_hub, such as MiniLM-L6.
    """

    tiny: bool = False
    data_dir: str = ""
    vision_model: str = ""
    text_model: str = ""


KERAS, KERAS_FLOAT32 = "keras:float16+xla", "keras:float32+tf32+xla"
TORCH, TORCH_EAGER = "torch:float16+compile", "torch:float16"
OURS, PLAIN = "custom:float16+xla", "custom:float16"
RECOMPUTED, BFLOAT16 = "custom:float16+xla+recompute", "custom:bfloat16+xla"
# Ratios are to the first.
ARMS = (KERAS, OURS, TORCH, KERAS_FLOAT32, PLAIN, TORCH_EAGER, RECOMPUTED, BFLOAT16)
TINY_ARMS = ("keras:float32", "custom:float16")

RESNET, TRANSFORMER, DECODER = "resnet50_224", "transformer_base", "decoder"
GOALS = (
    Goal(RESNET, OURS, KERAS, 0.85, 1.0),
    Goal(RESNET, OURS, TORCH, 1.0, 1.0),
    Goal(RESNET, OURS, KERAS_FLOAT32, 0.60, 0.50),
    Goal(RESNET, PLAIN, TORCH_EAGER, 1.0, 1.0),
    Goal(RESNET, RECOMPUTED, KERAS_FLOAT32, None, 0.25),
    Goal(TRANSFORMER, OURS, KERAS, 0.80, 0.75),
    Goal(TRANSFORMER, OURS, TORCH, 0.95, 1.0),
    Goal(TRANSFORMER, OURS, KERAS_FLOAT32, 0.45, 0.45),
    Goal(TRANSFORMER, PLAIN, TORCH_EAGER, 1.0, 1.0),
    Goal(TRANSFORMER, RECOMPUTED, KERAS_FLOAT32, None, 0.15),
    Goal(DECODER, OURS, TORCH, 1.0, 1.0),
    *(Goal(name, BFLOAT16, OURS, 1.03, 1.03) for name in (RESNET, TRANSFORMER)),
)

# How far below the final accuracy of Keras float32 an arm has arrived: the margins of
# equivalence of experiments/vision_transfer and experiments/text_finetune.
MARGINS = {"vision": 0.02, "text": 0.015}


def stages(inputs: Inputs) -> list[Stage]:
    """Returns the stages of a visit, the most important first."""
    return [
        Stage("machine", "machine", ("mp_loop.doctor", "--json"), 2),
        Stage("default", "command", _default(inputs.tiny), 3),
        Stage("gpu_tests", "tests", _gpu_tests(inputs.tiny), 4),
        _benchmark(TRANSFORMER, inputs.tiny, 8),
        _benchmark(RESNET, inputs.tiny, 11),
        _benchmark(DECODER, inputs.tiny, 5),
        _vision(inputs),
        _text(inputs),
        _benchmark("vit_b16", inputs.tiny, 3),
        _benchmark("bert_base", inputs.tiny, 3),
        *([] if inputs.tiny else [_suite()]),
    ]


def _default(tiny: bool) -> tuple[str, ...]:
    words = ("mp_loop.train", "--flagfile=experiments/exp.flags", "--steps=200")
    small = ("--model=mlp", "--batch_size=8", "--steps=2") if tiny else ()
    return (*words, *small, "--quiet", "--output_dir={folder}/results")


def _gpu_tests(tiny: bool) -> tuple[str, ...]:
    words = ("pytest", "-v", "-m", "gpu")
    files = ("tests/claims/gpu_test.py", "tests/claims/gpu_bits_test.py")
    if tiny:
        few = ("-n", "0", "--gpu_tests_on=CPU:1", "-k", "tf32 or evaluation")
        return (*words, *few, *files)
    return (*words, "-n", "4", *files)


def _suite() -> Stage:
    words = ("pytest", "-v", "-n", "8", "tests/step", "tests/precision", "tests/run")
    return Stage("suite", "tests", words, 2)


def _benchmark(workload: str, tiny: bool, weight: float) -> Stage:
    words = ["mp_loop.benchmark", f"--workloads={workload}"]
    if tiny:
        arms = TINY_ARMS
        words += ["--tiny", "--repeats=1", "--block_seconds=0"]
    else:
        arms = ARMS
        words += ["--start_together", "--start_seconds={start}", "--batches=device"]
        words += ["--repeats=5", "--block_seconds=0.5"]
    words += [f"--arms={','.join(arms)}", "--output_dir={folder}/results"]
    return Stage(workload, "benchmark", words, weight)


def _comparison(
    name: str, words: Sequence[str], tiny: bool, missing: Sequence[str]
) -> Stage:
    arms = "keras:float32,custom:float16"
    if not tiny:
        arms += ",keras:float16,custom:bfloat16"
    words = ("mp_loop.compare", *words, f"--arms={arms}", "--repeats=1", "--quiet")
    words += ("--output_dir={folder}/results",)
    needs = f"needs {', '.join(missing)}" if missing and not tiny else ""
    return Stage(name, "comparison", words, 5, needs)


def _vision(inputs: Inputs) -> Stage:
    """MobileNetV2 on photos of fruit, evaluated after every epoch."""
    words = [
        "--flagfile=experiments/vision_transfer/fruit.flags",
        f"--data_dir={inputs.data_dir}",
        f"--model={inputs.vision_model}",
        "--eval_every=22",
    ]
    if inputs.tiny:
        words = ["--model=mlp", "--batch_size=8", "--steps=4", "--eval_every=2"]
        words += ["--log_every=2", "--steps_per_call=2"]
    missing = [f"--{n}" for n in ("data_dir", "vision_model") if not getattr(inputs, n)]
    return _comparison("vision", words, inputs.tiny, missing)


def _text(inputs: Inputs) -> Stage:
    """MiniLM-L6 on sentences of film reviews, evaluated every 20 steps."""
    words = [
        "--flagfile=experiments/text_finetune/reviews.flags",
        f"--data_dir={inputs.data_dir}",
        f"--model=keras_hub:{inputs.text_model}",
        "--eval_every=20",
    ]
    if inputs.tiny:
        words = ["--task=causal_lm", "--dataset=text:CONTRIBUTING.md", "--steps=4"]
        words += ["--model=small_decoder", "--sequence_length=16", "--batch_size=8"]
        words += ["--eval_every=2", "--log_every=2", "--steps_per_call=2"]
    missing = [f"--{n}" for n in ("data_dir", "text_model") if not getattr(inputs, n)]
    return _comparison("text", words, inputs.tiny, missing)
