"""Output that nobody reads ends no command."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from mp_loop.cli import app

def run(config, flag_values):
    for _ in range(3):
        print("x" * 70000, flush=True)
        print("y" * 70000, file=sys.stderr, flush=True)
    print("caf\\udce9")
    with open({path!r}, "w") as file:
        file.write("trained")

app.main(run)
"""

ENDS = {
    "a reader that stops": "| head -c 1",
    "both go to it": "2>&1 | head -c 1",
    "stdout is closed": ">&-",
    "both are closed": ">&- 2>&-",
    "a full disk": "> /dev/full 2>&1",
    "a strict encoding": "> /dev/null",
}


@pytest.mark.parametrize("name", ENDS)
def test_a_command_goes_on(tmp_path, name):
    path = tmp_path / "done"
    (tmp_path / "program.py").write_text(PROGRAM.format(path=str(path)))
    command = f"set -o pipefail; {sys.executable} {tmp_path}/program.py {ENDS[name]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert path.read_text() == "trained"
    assert "Error" not in done.stderr
