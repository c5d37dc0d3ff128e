"""What a model gets right and wrong, on a page, of a file that may be damaged."""

import json

import pytest

from mp_loop.report import run_page, test_results
from mp_loop.run import records, run_folder, strict_json
from tests.support.pages import Page, read_page

PICTURE = "data:image/png;base64,AAAA"
HOSTILE = "<script>alert('&\"')</script>"


def example(index, label, predicted, **more):
    said = {"label": label, "predicted": predicted, "probability": 0.75}
    return {"index": index, **said, "label_probability": 0.125, **more}


def of_classes(names, confused=(), worst=(), best=(), **more):
    classes = [
        {
            "name": name,
            "count": 10 * i,
            "predicted": 10 if i else 0,
            "right": 5 * (i > 0),
        }
        for i, name in enumerate(names)
    ]
    keys = ("label", "predicted", "count")
    pairs = [dict(zip(keys, pair, strict=True)) for pair in confused]
    return {
        "task": "classification", "examples": 1234, "unusable": 0, "top_1": 0.625,
        "classes": classes, "worst": list(worst), "best": list(best),
        "confused": pairs, **more,
    }  # fmt: skip


def target(name, **more):
    values = dict.fromkeys(("mae", "rmse", "r2", "median_mae", "mean_rmse"), 0.5)
    return {"name": name, **values, "points": [[1, 2], [3, 3]], **more}


def of_targets(*given, worst=(), **more):
    return {
        "task": "regression", "examples": 9, "unusable": 0, "targets": list(given),
        "worst": list(worst), **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    run_folder.RunFolder.create(str(tmp_path / "r"), "--model=mlp\n").close()
    return tmp_path / "r"


def written(folder, found):
    (folder / records.TEST_RESULTS_FILE).write_text(strict_json.to_line(found))
    return read_page(run_page.write(folder))


def test_classes_of_images(folder):
    worst = [example(17, 1, 2, image=PICTURE), example(3, 2, None, image=PICTURE)]
    worst[1]["name"] = "cat/<3>.jpg"
    names = ["none here", "cat", HOSTILE]
    page, said = written(
        folder,
        of_classes(names, [(1, 2, 4)], worst, [example(5, 1, 1, image=PICTURE)]),
    )
    assert page.tags.count("script") == 1 and page.sources == [PICTURE] * 3
    for part in (
        "Right and wrong", "1,234 test examples: top-1 accuracy 0.6250.",
        "Confusion matrix", f"cat, predicted {HOSTILE}: 4 (40.0%)",
        f"{HOSTILE} 0.750", "none", "cat 0.125", "17", "cat/<3>.jpg",
    ):  # fmt: skip
        assert part in said, part
    text = (folder / "report.html").read_text()
    # A class without a test example, or that is never predicted, has no ratio.
    assert "<td>none here</td><td>0</td><td>-</td><td>-</td><td>-</td>" in text
    assert "<td>cat</td><td>10</td><td>0.500</td><td>0.500</td><td>0.500</td>" in text
    assert 'alt="predicted cat 0.750, true cat 0.125, example 5"' in text


def test_a_thousand_classes_are_tables(folder):
    names = [f"class {i}" for i in range(1002)]
    _, said = written(folder, of_classes(names, [(9, 7, 3)], top_5=0.875))
    assert "top-1 accuracy 0.6250, top-5 0.8750." in said
    assert "Confusion matrix" not in said and "Most often confused" in said
    assert "class 9 class 7 3 3.3%" in said
    assert "970 more" in said and "2 more in test_results.json" in said
    # The lowest F1 first; last the class of which nothing is known.
    table = said[said.index("the lowest F1 first") :]
    assert table.index("class 1001 ") < table.index("class 7 ")
    assert "class 0 " not in table


def test_texts_and_rows(folder):
    text = "<b>" * 50
    page, said = written(folder, of_classes("ab", worst=[example(1, 1, 0, text=text)]))
    assert text in said and "blockquote" in page.tags and "b" not in page.tags[-60:]
    rows = [example(1, 1, 0, row=[["age", 3.5], ["x<y", 1e9]])]
    _, said = written(folder, of_classes("ab", worst=rows))
    assert "age x<y" in said and "3.5 1G" in said


def test_a_regression(folder):
    worst = [{"index": 4, "labels": [1.5, 2], "predictions": [9.5, float("nan")]}]
    found = of_targets(
        target("price"),
        target("rent", r2=float("nan"), points=[[1, 1], [2, float("inf")]]),
        worst=worst,
        unusable=2,
    )
    page, said = written(folder, found)
    for part in (
        "2 of 9 outputs are NaN or infinite", "price: predicted against true",
        "rent: predicted against true", "MAE of the median RMSE RMSE of the mean R2",
        "predicted price", "9.5", "true rent", "nan",
    ):  # fmt: skip
        assert part in said, part
    assert page.tags.count("circle") == 3


def test_many_targets(folder):
    worst = [{"index": 4, "labels": [1.5] * 20, "predictions": [2.5] * 20}]
    given = [target(f"t{i}") for i in range(20)]
    page, said = written(folder, of_targets(*given, worst=worst))
    assert page.tags.count("circle") == 12 * 2 and "t19" in said
    assert "predicted t3" in said and "predicted t4" not in said


def of_labels(worst=()):
    counts = {"count": 9, "predicted": 4, "right": 3}
    labels = [
        {"name": "<a>", **counts, "auroc": 0.75},
        {"name": "b", **counts, "count": 0, "auroc": float("nan")},
    ]
    return {
        "task": "multilabel", "examples": 9, "unusable": 0, "exact": 0.625,
        "labels": labels, "worst": list(worst),
    }  # fmt: skip


def test_several_labels(folder):
    worst = [{"index": 3, "labels": [0, 1], "predictions": [], "text": "told"}]
    _, said = written(folder, of_labels(worst))
    for part in (
        "all labels are right in 0.6250", "F1 AUROC", "<a> 9 0.750 0.333 0.462 0.750",
        "b 0 0.750 - 1.500 -", "told", "none", "<a>, b",
    ):  # fmt: skip
        assert part in said, part


def of_pixels(**more):
    counts = {"count": 1000, "predicted": 500, "right": 250, "color": "#a0b0c0"}
    return {
        "task": "segmentation", "examples": 4, "pixels": 2000, "unusable": 3,
        "classes": [{"name": "<road>", **counts}, {"name": "sky", **counts}],
        "confused": [{"label": 0, "predicted": 1, "count": 250}],
        "worst": [{"index": 7, "right": 0.125, "image": PICTURE, **more}],
    }  # fmt: skip


def test_masks(folder):
    masks = {"true_mask": PICTURE, "predicted_mask": f"{PICTURE}BB"}
    page, said = written(folder, of_pixels(**masks))
    assert page.sources == [PICTURE, PICTURE, f"{PICTURE}BB"]
    for part in (
        "4 test images: 0.2500 of 2,000 pixels are right.", "3 of 2,000 outputs are",
        "class pixels precision recall F1 IoU", "<road> 1,000 0.500 0.250 0.333 0.200",
        "right pixels", "0.125", "sky",
    ):  # fmt: skip
        assert part in said, part


def test_names_that_look_like_numbers_and_a_run_without_results(folder):
    assert "Right and wrong" not in read_page(run_page.write(folder))[1]
    written(folder, of_classes(["half a character: \ud800", "b"]))
    _, said = written(folder, of_classes(["nan", "-inf"], [(1, 0, 1)]))
    assert "damaged" not in said and "-inf, predicted nan: 1" in said


DAMAGE = {
    "a list": [],
    "another task": of_classes("ab", task="detection"),
    "something missing": {"task": "regression", "examples": 3, "unusable": 0},
    "a class without a name": of_classes("ab", [(0, 5, 1)]),
    "an example of no class": of_classes("ab", worst=[example(1, 2, 0)]),
    "a label without a name": of_labels(
        [{"index": 3, "labels": [0], "predictions": [2]}]
    ),
    "a mask that is no picture": of_pixels(true_mask="mask.png"),
    "an address": of_classes("ab", worst=[example(1, 1, 0, image="http://a.b/c.png")]),
    "an attribute": of_classes("ab", best=[example(1, 1, 1, image=f'{PICTURE}" x="')]),
    "a count that is none": of_classes("ab", top_5="many"),
    "a target too few": of_targets(
        target("a"), worst=[{"index": 1, "labels": [1, 2], "predictions": [1, 2]}]
    ),
    "points of one number": of_targets(target("a", points=[[1]])),
    "a number that is none": of_targets(target("a", mae=None)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_told_and_left_out(folder, name):
    (folder / records.TEST_RESULTS_FILE).write_text(json.dumps(DAMAGE[name]))
    said = read_page(run_page.write(folder))[1]
    assert "test_results.json is damaged and partly left out: " in said
    assert "Right and wrong" not in said


def test_one_class_alone_has_no_matrix():
    said = " ".join(Page(test_results.section(of_classes(["only"]))).said)
    assert "No class was taken for another." in said
