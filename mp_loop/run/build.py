"""From settings to an experiment: checks the workers, starts TensorFlow, builds.

    built = build.from_settings(config)
    built.step.run(iter(built.batches(epoch=0)), 10)

Every command that trains starts here. TensorFlow, which takes seconds to import, is
imported only when an experiment is built, so that a bad flag is reported at once; and
some settings must be known before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mp_loop.config import names, settings
from mp_loop.distributed import cluster, handshake
from mp_loop.hardware import startup

if TYPE_CHECKING:
    import tensorflow as tf

    from mp_loop.run import experiment


def from_settings(config: settings.Config) -> experiment.Experiment:
    """Loads the data and makes model, step and evaluation.

    Args:
      config: of the experiment; --precision may be auto.

    Raises:
      UsageError: a name is unknown; the data, the model or the loss cannot be loaded,
        or they do not fit together, or the workers' settings differ.
      cluster.WorkerLost: another worker did not start.
    """
    names.check(config)
    if config.parallel.strategy == "multi_worker":
        handshake.wait_for_all(
            cluster.task(), _common_flags(config), config.parallel.worker_timeout
        )
    strategy = start_tensorflow(config)
    from mp_loop.run import experiment

    return experiment.make(resolve_precision(config), strategy)


def start_tensorflow(config: settings.Config) -> tf.distribute.Strategy:
    """Imports and starts TensorFlow as the settings need it; returns the strategy."""
    # On a CPU with AVX512-FP16, oneDNN's float16 convolution gradients run on its
    # reference code, a hundred times slower.
    precision = config.precision
    startup.start_tensorflow(
        slow_onednn=precision.loop == "keras" and precision.precision == "float16"
    )
    import tensorflow as tf

    from mp_loop.distributed import strategies

    with startup.quiet_start():
        strategy = strategies.make(config.parallel.strategy)
        tf.ones((2, 2), "float16")  # oneDNN may log what it lacks at the first one
    return strategy


def resolve_precision(config: settings.Config) -> settings.Config:
    """Returns the settings with --precision=auto resolved for this machine."""
    if config.precision.precision != "auto":
        return config
    from mp_loop.hardware import machine

    return config.at_precision(machine.best_precision())


def _common_flags(config: settings.Config) -> str:
    """The flags that all workers must share; folders are each machine's own."""
    own = {"data_dir": "", "output_dir": "", "resume": False, "worker_timeout": 1}
    return config.replace(**own).to_flagfile()
