"""Pictures of layers: where crosses and gaps are, and what exponents are shown."""

import pytest

from mp_loop.report import numerics_plots
from tests.support import saved_pictures


def entry(inf=0):
    return {
        "headroom": 3.0,
        "underflow": 0.05,
        "inf": inf,
        "nan": 0,
        "histogram": [1, 3],
        "first": -20,
    }


def line(step, inf=0):
    layers = [
        {
            "name": "conv",
            "dtype": "float16",
            "activations": entry(inf),
            "activation_grads": entry(),
        },
        {
            "name": "softmax",
            "dtype": "float32",
            "activations": entry(),
            "activation_grads": None,
        },
    ]
    return {"step": step, "loss_scale": 1024.0, "layers": layers}


@pytest.fixture
def pictures(monkeypatch, tmp_path):
    return saved_pictures.collected(monkeypatch, tmp_path)


def test_steps(pictures):
    assert numerics_plots.draw_steps("x.png", [line(0), line(10, inf=2), line(20)])
    activations, grads, lost = pictures[0].axes[:3]
    assert activations.images[0].get_array().tolist() == [[3.0] * 3] * 2
    # What float32 layers do not have is a gap.
    assert grads.images[0].get_array().mask[:, 0].tolist() == [False, True]
    assert lost.images[0].get_clim() == (0, 0.1)
    crosses = [(list(p.get_xdata()), list(p.get_ydata())) for p in activations.lines]
    assert crosses == [([1], [0])]
    assert [(list(p.get_xdata())) for p in grads.lines] == [[]]
    names = [label.get_text() for label in activations.get_yticklabels()]
    assert names == ["conv", "softmax"]


def test_exponents(pictures):
    assert numerics_plots.draw_exponents("x.png", line(0))
    activations, grads = pictures[0].axes[:2]
    shares = activations.images[0].get_array()
    assert (shares[0, 30], shares[0, 31]) == (0.25, 0.75)  # 2^-20 and 2^-19
    # Gradients are shown times 2^10.
    assert grads.images[0].get_array()[0, 41] == 0.75
    assert "times 2^10" in grads.get_title(loc="left")
