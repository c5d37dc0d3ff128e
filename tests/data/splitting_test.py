"""Which examples are held out."""

from mp_loop.data import splitting


def test_about_the_fraction_is_held_out_and_more_of_a_larger_one():
    names = [f"cat/{i}.jpg" for i in range(2000)]
    tenth, half = (
        {name for name in names if splitting.is_held_out(name, fraction)}
        for fraction in (0.1, 0.5)
    )
    # Of a binomial: within four standard deviations.
    assert abs(len(tenth) - 200) < 54 and abs(len(half) - 1000) < 90
    assert tenth < half


def test_what_is_held_out_never_changes():
    names = [f"{i}" for i in range(40)]
    held_out = [name for name in names if splitting.is_held_out(name, 0.1)]
    assert held_out == ["9", "39"]
    assert splitting.is_held_out("\udcff.jpg", 1.0)  # no UTF-8
