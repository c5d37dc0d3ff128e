"""What is due when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mp_loop.run import planning

counts = st.integers(1, 30)


@given(
    total=counts,
    epoch=counts,
    call=counts,
    log=counts,
    evaluate=st.integers(0, 30),
    save=st.integers(0, 30),
)
def test_no_call_runs_over_a_boundary(total, epoch, call, log, evaluate, save):
    plan = planning.Plan(total, epoch, 1, call, log, evaluate, save)
    position, seen = 0, []
    while position < total:
        count = plan.steps_until_due(position)
        assert 1 <= count <= call
        position += count
        seen.append(position)
    assert position == total
    for every in (epoch, log, evaluate or epoch, save or epoch):
        due = [*range(every, total + 1, every)]
        assert set(due) <= set(seen)
        assert [p for p in seen if plan.is_due(p, every)] == sorted({*due, total})


def test_the_last_step_is_due_for_everything():
    plan = planning.Plan(7, 100, 1, log_every=5, inspect_every=3)
    assert plan.due_at(5) == planning.Due(log=True, evaluate=False, save=False)
    assert plan.due_at(7) == planning.Due(log=True, evaluate=True, save=True)
    assert not plan.due_at(6).anything
    assert [plan.inspects(position) for position in range(4)] == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("position", "best", "over"),
    [(10, 0, False), (20, 0, True), (29, 10, False), (30, 10, True), (35, 15, True)],
)
def test_patience_counts_evaluations(position, best, over):
    plan = planning.Plan(100, 10, 1, early_stopping=2)
    assert plan.is_over(position, best) is over
    assert not planning.Plan(100, 10, 1).is_over(position, best)


def test_patience_begins_with_its_phase():
    plan = planning.Plan(100, 10, 1, eval_every=5, early_stopping=2, patient_from=40)
    assert [plan.is_over(n, 5) for n in (40, 45, 50)] == [False, False, True]
