"""The fingerprint of a run's data, in its folder."""

import json

import pytest

from mp_loop.config import errors, settings
from mp_loop.run import same_data

FOUND = {"classes": 2, "train": {"examples": 6}, "test": {"examples": 4}}


def check(folder, content):
    if content is not None:
        (folder / "data.json").write_text(content)
    config = settings.Config().replace(output_dir=str(folder), dataset="csv:a.csv")
    same_data.check(config, FOUND)


def test_other_data_are_refused_in_a_line_that_says_the_way_on(tmp_path):
    before = json.dumps({**FOUND, "train": {"examples": 5}})
    with pytest.raises(errors.UsageError) as error:
        check(tmp_path, before)
    assert str(error.value) == (
        f"--dataset (csv:a.csv) is not what the run in '{tmp_path}' was begun with: 6 "
        "examples to train on instead of 5. Resume with the same data, or begin "
        "another run; to go on with these nevertheless, remove "
        f"'{tmp_path / 'data.json'}'."
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, 0), (json.dumps(FOUND), 0), ("[1]", 1), ("{", 1)],
    ids=["of an earlier version", "the same", "no object", "damaged"],
)
def test_what_cannot_be_compared_goes_on(tmp_path, caplog, content, named):
    check(tmp_path, content)
    assert len(caplog.messages) == named
    assert all("data.json is damaged" in message for message in caplog.messages)
