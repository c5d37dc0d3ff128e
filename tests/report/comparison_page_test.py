"""The page of a comparison: its table, curves and links."""

from mp_loop.config import settings
from mp_loop.report import comparison_page, recorded_runs
from mp_loop.run import run_folder
from tests.support.pages import read_page
from tests.support.run_folders import line


def made_run(folder):
    config = settings.Config.of(output_dir=str(folder))
    run = run_folder.RunFolder.create(config.records.output_dir, config.to_flagfile())
    run.log(line(10))
    run.close()


def test_a_comparison(tmp_path):
    made_run(tmp_path / "run")
    made_run(tmp_path / "run-1")
    rows = [
        ["", "custom:float16", "keras:float16"],
        ["accuracy", "0.9", "0.8 (0 to 1)"],
    ]
    arms = {"run": "custom:float16", "run-1": "keras:float16"}
    runs = {
        name: recorded_runs.RecordedRun.read(tmp_path / name, arm)
        for name, arm in arms.items()
    }
    page, said = read_page(comparison_page.write(tmp_path, rows, runs, "A note."))
    for part in ("Comparison: cnn on", "0.8 (0 to 1)", "A note.", "keras:float16"):
        assert part in said
    links = [value for value in page.values if value.endswith("report.html")]
    assert links == ["run/report.html", "run-1/report.html"]
