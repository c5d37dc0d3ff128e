"""What an unknown flag may have meant.

flag_hints.of("lr", ["learning_rate"])     # " Did you mean: --learning_rate?"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 3
# What other trainers call it, where neither letters nor words tell.
_ELSEWHERE = {
    "amp": "--precision",
    "arch": "--model",
    "bf16": "--precision=bfloat16",
    "devices": "--strategy=mirrored",
    "fp16": "--precision=float16",
    "gpus": "--strategy=mirrored",
    "grad_accum": "--accumulate_steps",
    "gradient_accumulation_steps": "--accumulate_steps",
    "half": "--precision=float16",
    "lr": "--learning_rate",
    "max_grad_norm": "--clip_norm",
    "mixed_precision": "--precision",
    "num_gpus": "--strategy=mirrored",
    "out": "--output_dir",
    "restore": "--resume",
}
_NO_EARLY_STOPPING = (
    " There is no early stopping: the best checkpoint is kept (--best_by), and "
    "--resume with more --epochs goes on."
)


def of(name: str, known: Iterable[str]) -> str:
    """Returns a sentence that names the flags that were probably meant, or "".

    Args:
      name: what was given, without dashes.
      known: the flags of the command.
    """
    name = name.lower().replace("-", "_")
    if name in ("early_stopping", "patience"):
        return _NO_EARLY_STOPPING
    known = [flag for flag in known if len(flag) > 1]
    found = [_ELSEWHERE[name]] if name in _ELSEWHERE else []
    found = found or [f"--{flag}" for flag in known if name == _initials(flag)]
    close = difflib.get_close_matches(name, known, _MOST, cutoff=0.7)
    found += [f"--{flag}" for flag in close]
    words = {word for word in name.split("_") if len(word) > 2}
    found += [f"--{flag}" for flag in known if words & set(flag.split("_"))]
    found = list(dict.fromkeys(found))[:_MOST]
    return f" Did you mean: {', '.join(found)}?" if found else ""


def _initials(flag: str) -> str:
    return "".join(word[0] for word in flag.split("_"))
