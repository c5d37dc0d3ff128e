"""Pictures that are saved, for tests to look into."""

import pathlib


def collected(monkeypatch, folder):
    """Returns a list that every figure enters when it is saved, as an empty file.

    Args:
      monkeypatch: pytest's.
      folder: becomes the current one.
    """
    from matplotlib import figure

    seen = []

    def save(picture, path, **_):
        seen.append(picture)
        pathlib.Path(path).touch()

    monkeypatch.chdir(folder)
    monkeypatch.setattr(figure.Figure, "savefig", save)
    return seen
