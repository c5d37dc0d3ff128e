"""The picture of a benchmark."""

from mp_loop.bench import results_plot
from tests.support import saved_pictures


def test_arms_that_failed_are_left_out(monkeypatch, tmp_path):
    seen = saved_pictures.collected(monkeypatch, tmp_path)
    done = {"time_ratio": {"median": 0.5}, "step_bytes_ratio": 0.25}
    results = {"cnn": {"keras:float32": done, "custom:bfloat16": {"failed": "why"}}}
    assert results_plot.draw("x.png", results)
    times, memories = seen[0].axes
    assert [bar.get_width() for bar in times.patches] == [0.5]
    assert [bar.get_width() for bar in memories.patches] == [0.25]
    assert [label.get_text() for label in times.get_yticklabels()] == ["keras:float32"]
