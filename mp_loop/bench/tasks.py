"""What a process of the benchmark has to do.

task = Task(arm, workloads.WORKLOADS["resnet20"], batch_size=128)
Task.from_json(task.to_json()) == task
"""

from __future__ import annotations

import dataclasses
import json

from mp_loop.bench import workloads
from mp_loop.config import comparison_arms


@dataclasses.dataclass(frozen=True)
class Task:
    """One arm on one workload.

    Attributes:
      arm: loop, precision and options.
      workload: what is trained.
      batch_size: examples of a step.
      on_device: whether the batch waits on the GPU, where there is one; otherwise it
        is copied there in every step.
      start_seconds: after which a process that is not warm is given up; 0: never.
    """

    arm: comparison_arms.Arm
    workload: workloads.Workload
    batch_size: int
    on_device: bool = False
    start_seconds: float = 0.0

    def to_json(self) -> str:
        """Returns the task as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Reads what `to_json` returned."""
        fields = json.loads(text)
        arm, workload = fields["arm"], fields["workload"]
        arm["options"] = tuple(arm["options"])
        workload["shape"] = tuple(workload["shape"])
        fields["arm"] = comparison_arms.Arm(**arm)
        fields["workload"] = workloads.Workload(**workload)
        return cls(**fields)
