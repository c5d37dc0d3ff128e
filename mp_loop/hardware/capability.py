"""Which precision pays on which device, and why: pure functions of plain facts.

    gpu = Device("GPU", "GPU:0", "Tesla T4", compute_capability=(7, 5))
    support(gpu, "float16")     # Support("yes", "tensor cores multiply float16")
    choose([gpu])               # Choice("float16", "...")
    slowdown_note([gpu], "bfloat16")   # "bfloat16 takes longer than float32 ..."

Nothing is looked up or measured here (`devices` and `product_timing` do), so that the
rules for every GPU can be tested on a machine without one.

Sources: NVIDIA, "CUDA C++ Programming Guide", arithmetic instructions and tensor
cores by compute capability; "Train With Mixed Precision", sections 2 and 3. For
processors: what TensorFlow's kernels do, measured (docs/decisions/hardware.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

# The 16-bit types, the preferred one first.
PREFERRED = ("bfloat16", "float16")
# A time below this share of float32's counts as faster; above the inverse, as slower.
# Timing noise is less.
_CLEARLY_FASTER = 0.95


@dataclasses.dataclass(frozen=True)
class Device:
    """The facts about one device.

    Attributes:
      kind: "CPU", "GPU", or another of TensorFlow's kinds.
      name: TensorFlow's name, such as "GPU:0".
      model: the manufacturer's name for the product.
      compute_capability: of an NVIDIA GPU, (major, minor).
      instructions: a processor's flags, in lower case; None if they cannot be read.
      ratios: for each type its measured time divided by that of float32, the worst of
        all products; empty if nothing was measured.
    """

    kind: str
    name: str
    model: str = ""
    compute_capability: tuple[int, int] | None = None
    instructions: frozenset[str] | None = frozenset()
    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Support:
    """What a type gains on a device.

    Attributes:
      gain: "yes": faster and smaller than float32; "perhaps": only a measurement can
        decide; "memory": only smaller; "no".
      reason: why, without a final full stop.
    """

    gain: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """A precision, and why it was chosen (without a final full stop)."""

    precision: str
    reason: str


def support(device: Device, precision: str) -> Support:
    """Returns what a 16-bit type gains over float32 on a device, by rule alone.

    Args:
      device: the device; its `ratios` are ignored.
      precision: "float16" or "bfloat16".
    """
    if device.kind == "CPU":
        return _on_cpu(device.instructions, precision)
    if device.compute_capability is None:
        return Support("perhaps", f"no rule is known for {device.model or 'it'}")
    return _on_gpu(device.compute_capability, precision)


def _on_cpu(instructions: frozenset[str] | None, precision: str) -> Support:
    if precision == "float16":
        return Support(
            "no",
            "TensorFlow has no fast float16 kernels for processors; it is stored in "
            "16 bits and multiplied in float32",
        )
    if instructions is None:
        return Support("perhaps", "the processor's instructions cannot be read")
    if "amx_bf16" in instructions:
        return Support("yes", "AMX tiles multiply bfloat16")
    if "avx512_bf16" in instructions:
        return Support(
            "perhaps", "AVX512_BF16 multiplies bfloat16, but not every kernel gains"
        )
    if "bf16" in instructions:  # Arm
        return Support("perhaps", "the processor multiplies bfloat16 (Arm BF16)")
    return Support(
        "no",
        "without AVX512_BF16 or AMX bfloat16 is stored in 16 bits and multiplied in "
        "float32",
    )


def _on_gpu(capability: tuple[int, int], precision: str) -> Support:
    number = ".".join(map(str, capability))
    said = f"compute capability {number}"
    if precision in tensor_cores(capability):
        return Support("yes", f"tensor cores multiply {precision} ({said})")
    if precision == "bfloat16":
        return Support("no", f"bfloat16 needs compute capability 8.0, not {number}")
    if capability >= (5, 3):
        return Support(
            "memory", f"float16 is native, but there are no tensor cores ({said})"
        )
    return Support("no", f"float16 is computed as float32 ({said})")


def tensor_cores(capability: tuple[int, int]) -> tuple[str, ...]:
    """Returns what an NVIDIA GPU's tensor cores multiply, of what training uses.

    Args:
      capability: the compute capability, (major, minor).

    Returns:
      Some of "float16" (from 7.0 on), "bfloat16" and "TF32" (both from 8.0 on). TF32 is
      float32 whose products round their inputs to 10 bits of mantissa.
    """
    if capability >= (8, 0):
        return ("float16", "bfloat16", "TF32")
    return ("float16",) if capability >= (7, 0) else ()


def used_for_training(devices: Sequence[Device]) -> list[Device]:
    """Returns the devices that training runs on: accelerators, else the processor."""
    accelerators = [device for device in devices if device.kind != "CPU"]
    return accelerators or list(devices)


def gains(device: Device, precision: str) -> Support:
    """Returns what a type gains on a device: by rule, then by measurement if any.

    A measurement overrides every rule but a "no": a single product may be fast there
    although a model is not.
    """
    ruled, ratio = support(device, precision), device.ratios.get(precision)
    if ratio is None or ruled.gain == "no":
        return ruled
    measured = f"{ratio:.2f} of float32's time, measured"
    if ratio <= _CLEARLY_FASTER:
        return Support("yes", f"{ruled.reason}; {measured}")
    return Support("memory", f"{ruled.reason}; but {measured}")


def choose(devices: Sequence[Device]) -> Choice:
    """Chooses the precision that `--precision=auto` stands for.

    bfloat16 if every device used for training gains speed from it (it is as fast as
    float16 and has the range of float32); else float16 if every one does; else
    float32.

    Args:
      devices: all devices of the machine. A type whose gain is "perhaps" is chosen
        only if it was measured.
    """
    refusals = []
    for precision in PREFERRED:
        used = used_for_training(devices)
        found = [(device, gains(device, precision)) for device in used]
        against = [(device, said) for device, said in found if said.gain != "yes"]
        if not against:
            reasons = dict.fromkeys(said.reason for _, said in found)
            return Choice(precision, "; ".join(reasons))
        device, said = against[0]
        refusals.append(f"{_NOT[said.gain]} from {precision} on {device.name}: ")
        refusals[-1] += said.reason
    return Choice("float32", "; ".join(refusals))


_NOT = {"no": "no gain", "memory": "no speed", "perhaps": "no measured gain"}


def slowdown_note(devices: Sequence[Device], precision: str) -> str | None:
    """Returns one line if a run would be slower than in float32, else None.

    Args:
      devices: all devices of the machine, measured or not.
      precision: the precision that was asked for.
    """
    if precision not in PREFERRED:
        return None
    for device in used_for_training(devices):
        ruled, ratio = support(device, precision), device.ratios.get(precision)
        if ruled.gain == "no" or (ratio is not None and ratio > 1 / _CLEARLY_FASTER):
            measured = "" if ratio is None else f"; {ratio:.2f} of its time, measured"
            best = choose(devices).precision
            return (
                f"{precision} takes longer than float32 on {device.name}: "
                f"{ruled.reason}{measured}. Expect the results of {precision}, and not "
                f"its speed; --precision={best} is the fastest here, and python -m "
                "mp_loop.doctor shows why."
            )
    return None


def must_measure(devices: Sequence[Device], precision: str) -> bool:
    """Tells whether `slowdown_note` can only decide after a measurement."""
    return precision in PREFERRED and any(
        support(device, precision).gain in ("perhaps", "memory")
        for device in used_for_training(devices)
    )
