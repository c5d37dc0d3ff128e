"""Why TensorFlow sees no GPU: pure rules over plain facts, and how the facts are found.

    reasons(find())    # ["TensorFlow could not open libcudnn.so.9: ..."]

TensorFlow does not say by itself which library it lacks: a process of its own, which
logs more, is started where everything else is in order.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

from mp_loop.hardware import cuda_driver, environment

_INSTALL = "pip install 'mp_loop[gpu]'"
_LOOK = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
# The file that opens CUDA's libraries names those that it cannot open at this level.
_LOG_MORE = {"TF_CPP_VMODULE": "dso_loader=1", "TF_CPP_MIN_LOG_LEVEL": "0"}
_MISSING = re.compile(r"Could not load dynamic library '([^']+)'")
_PROBLEM = re.compile(r"^[WE]\d{4} [^\]]*\] (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known where TensorFlow sees no GPU.

    Attributes:
      built_for: the version of CUDA that TensorFlow was built for, such as "12.5.1";
        None: it was built without.
      oldest: the lowest compute capability that it was built for, (major, minor).
      visible: CUDA_VISIBLE_DEVICES; None: it is not set.
      kernel_driver: the version of the driver that the system has loaded, if any.
      driver: what the driver's library says.
      log: what TensorFlow logs while it looks for GPUs; empty: it was not asked.
    """

    built_for: str | None
    oldest: tuple[int, int] | None = None
    visible: str | None = None
    kernel_driver: str | None = None
    driver: cuda_driver.Answer = cuda_driver.Answer(False)
    log: str = ""

    @property
    def hidden(self) -> bool:
        """Whether CUDA_VISIBLE_DEVICES hides every card."""
        return self.visible is not None and self.visible.strip() in ("", "-1")


def find() -> Facts:
    """Looks around; starts a process of a few seconds if the driver offers a card."""
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    built_for = build.get("cuda_version") if build.get("is_cuda_build") else None
    facts = Facts(
        built_for,
        _oldest(build.get("cuda_compute_capabilities") or ()),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        environment.nvidia_driver(),
        cuda_driver.ask(),
    )
    if built_for and facts.driver.cards:
        facts = dataclasses.replace(facts, log=tensorflow_log())
    return facts


def tensorflow_log() -> str:
    """Returns what TensorFlow logs while it looks for GPUs, in another process."""
    done = subprocess.run(
        [sys.executable, "-c", _LOOK],
        env=os.environ | _LOG_MORE,
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.stderr


def missing_libraries(log: str) -> list[str]:
    """Returns the libraries that TensorFlow could not open, by its log."""
    return list(dict.fromkeys(_MISSING.findall(log)))


def reasons(facts: Facts) -> list[str]:
    """Returns why TensorFlow sees no GPU, and what to do: the cause first."""
    found = []
    if facts.built_for is None:
        found.append(f"This TensorFlow was built without CUDA ({_INSTALL}).")
    if facts.hidden:
        return [f"CUDA_VISIBLE_DEVICES ('{facts.visible}') hides every GPU.", *found]
    said = _of_driver(facts)
    if said:
        return [*found, said]
    return found or _of_tensorflow(facts)


def _of_driver(facts: Facts) -> str | None:
    """What is wrong with the driver, if anything."""
    driver, version = facts.driver, facts.kernel_driver
    known = f"driver {version}" if version else "driver"
    if not driver.opened and not version:
        return (
            "No NVIDIA driver is installed: there is no /proc/driver/nvidia, no "
            f"nvidia-smi and no {cuda_driver.LIBRARY}."
        )
    if not driver.opened:
        return (
            f"NVIDIA's {known} is loaded, but its library cannot be opened: "
            f"{driver.error}. A container must be started with its GPUs (docker run "
            "--gpus all)."
        )
    chosen = ""
    if facts.visible is not None:
        chosen = f" CUDA_VISIBLE_DEVICES is '{facts.visible}'."
    if driver.error:
        return f"NVIDIA's {known} offers no card: {driver.error}.{chosen}"
    if not driver.cards:
        return f"NVIDIA's {known} finds no card.{chosen}"
    if driver.cuda_version and facts.built_for:
        needed = int(facts.built_for.split(".")[0])
        if driver.cuda_version[0] < needed:
            newest = _dotted(driver.cuda_version)
            return (
                f"NVIDIA's {known} is too old: it runs CUDA {newest} and older, and "
                f"TensorFlow was built for CUDA {facts.built_for}."
            )
    return None


def _of_tensorflow(facts: Facts) -> list[str]:
    """What TensorFlow lacks where the driver offers cards that run its CUDA."""
    missing = missing_libraries(facts.log)
    if missing:
        names = ", ".join(missing)
        return [f"TensorFlow could not open {names} ({_INSTALL} brings CUDA)."]
    cards = facts.driver.cards
    if facts.oldest and all(c.compute_capability < facts.oldest for c in cards):
        found = ", ".join(f"{c.model}: {_dotted(c.compute_capability)}" for c in cards)
        return [
            f"TensorFlow was built for compute capability {_dotted(facts.oldest)} and "
            f"above ({found})."
        ]
    names = ", ".join(card.model for card in cards)
    problems = _PROBLEM.findall(facts.log)
    said = f": {problems[-1]}" if problems else ", and logs no reason."
    return [f"The driver offers {names}, but TensorFlow does not take it{said}"]


def _oldest(built: list[str] | tuple[str, ...]) -> tuple[int, int] | None:
    """Returns the lowest of TensorFlow's names ("sm_60", "compute_90")."""
    numbers = [re.fullmatch(r"(?:sm|compute)_(\d+)(\d)\w?", name) for name in built]
    return min(((int(n[1]), int(n[2])) for n in numbers if n), default=None)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
