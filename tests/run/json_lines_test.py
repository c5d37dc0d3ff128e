"""Files of JSON lines: what is kept, and what is damaged."""

import pytest

from mp_loop.config import errors
from mp_loop.run import json_lines

DAMAGED = {
    "no JSON": "nonsense",
    "no object": "[1]",
    "no step": "{}",
    "a step that is no number": '{"step": "4"}',
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_named_and_left_out(tmp_path, name):
    path = tmp_path / "lines"
    path.write_text(f'{{"step": 1}}\n{DAMAGED[name]}\n{{"step": 3}}\n{{"st')
    found = json_lines.read(path)
    assert found.lines == [{"step": 1}, {"step": 3}]
    (text,) = found.damaged
    assert text.startswith("line 2: ")


def test_what_an_object_must_be_is_asked(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"step": 1, "a": 2}\n{"step": 3}\n')
    found = json_lines.read(path, lambda line: "" if "a" in line else "no a")
    assert found == json_lines.Read([{"step": 1, "a": 2}], ["line 2: no a"])


def test_a_file_that_is_missing_holds_nothing_and_one_that_is_a_folder_is_refused(
    tmp_path,
):
    assert json_lines.read(tmp_path / "none") == json_lines.Read([], [])
    with pytest.raises(errors.RecordError, match="cannot be read: Is a directory"):
        json_lines.read(tmp_path)


def test_the_whole_lines_can_be_read_after_the_file_has_lost_its_name(tmp_path):
    path = tmp_path / "lines"
    json_lines.rewrite(path, [{"step": 1}])
    log = json_lines.Log(path)
    log.write({"step": 2})
    path.unlink()
    assert log.read() == b'{"step": 1}\n{"step": 2}\n'
    log.close()
    log.close()
