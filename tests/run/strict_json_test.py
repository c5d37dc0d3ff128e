"""JSON with every number, and what becomes of tensors."""

import json
import math

from mp_loop.run import records, run_folder
from tests.support import run_folders


def test_non_finite_numbers_stay_valid_json(tmp_path):
    run = run_folder.RunFolder.create(str(tmp_path), run_folders.FLAGS)
    values = {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf}
    run.log({"step": 1, **values})
    run.write_summary({"runs": [values]})
    run.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    strings = {"loss": "nan", "grad_norm": "inf", "low": "-inf"}
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, **strings}
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"runs": [strings]}
    (read,) = records.read_metrics(tmp_path)
    assert math.isnan(read["loss"])
    assert (read["grad_norm"], read["low"]) == (math.inf, -math.inf)
    (read,) = records.read_summary(tmp_path)["runs"]
    assert math.isnan(read["loss"])


def test_tensors_and_numpy_numbers_become_python_numbers(tmp_path):
    import numpy as np
    import tensorflow as tf

    run = run_folder.RunFolder.create(str(tmp_path), run_folders.FLAGS)
    run.log({"step": np.int64(3), "loss": tf.constant(0.5), "scale": np.float32(2)})
    run.close()
    assert records.read_metrics(tmp_path) == [{"step": 3, "loss": 0.5, "scale": 2.0}]
