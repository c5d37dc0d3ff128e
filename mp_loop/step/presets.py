"""The constants of other systems' dynamic loss scales.

`DynamicLossScale.preset` names the source of each, and the edges that are not copied.
"""

from __future__ import annotations

from mp_loop.config import limits

_UNBOUNDED = {
    "min_scale": limits.SMALLEST,
    "max_scale": limits.LARGEST,
    "clamp_growth": False,
}

# What differs from `DynamicLossScale`'s own constants.
PRESETS: dict[str, dict[str, float]] = {
    "keras": _UNBOUNDED,
    "tf_keras": _UNBOUNDED | {"min_scale": 1.0},
    "torch": _UNBOUNDED | {"initial_scale": 2.0**16},
    "apex": {"initial_scale": 2.0**16, "min_scale": limits.SMALLEST},
    "megatron": _UNBOUNDED
    | {
        "initial_scale": 2.0**32,
        "growth_interval": 1000,
        "min_scale": 1.0,
        "hysteresis": 2,
    },
    "deepspeed": _UNBOUNDED
    | {
        "initial_scale": 2.0**16,
        "growth_interval": 1000,
        "min_scale": 1.0,
        "hysteresis": 2,
        "wait_after_overflow": 1,
    },
    "jmp": _UNBOUNDED | {"min_scale": 1.0},
    "flax": {
        "initial_scale": 2.0**16,
        "min_scale": limits.SMALLEST,
        "max_scale": limits.LARGEST,
        "wait_after_overflow": 1,
        "wait_after_growth": 1,
    },
    # The floor is the smallest float32 above 1e-4.
    "fairseq": _UNBOUNDED
    | {"min_scale": 1.0000000474974513e-4, "clamp_backoff": False},
}
