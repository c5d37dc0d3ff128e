"""The files of a run, read back."""

import pytest

from mp_loop.config import errors
from mp_loop.run import records

SUMMARIES = [
    pytest.param(None, id="missing"),
    pytest.param("{", id="half written"),
    pytest.param("[]", id="no object"),
]


@pytest.mark.parametrize("text", SUMMARIES)
def test_read_summary_refuses(tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(errors.RecordError, match="not the summary of a run"):
        records.read_summary(tmp_path)
