"""Builds the API reference from the docstrings: `python docs/api.py [FOLDER]`.

FOLDER is build/api unless given; open its mp_loop.html. The public names are those of
`mp_loop.__all__`. Every warning of the generator is an error.
"""

from __future__ import annotations

import pathlib
import sys
import warnings

import pdoc

import mp_loop

ROOT = pathlib.Path(__file__).parents[1]


def main(folder: str = "") -> None:
    """Writes the pages."""
    output = pathlib.Path(folder) if folder else ROOT / "build" / "api"
    for name in mp_loop.__all__:
        getattr(mp_loop, name)  # imported on first use, which pdoc does not do
    pdoc.render.configure(
        docformat="google",
        show_source=False,
        template_directory=ROOT / "docs" / "api_template",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A NamedTuple keeps its annotations as strings, which pdoc cannot resolve
        # and shows as they are written.
        warnings.filterwarnings("ignore", "Error parsing type annotation ForwardRef")
        pdoc.pdoc("mp_loop", output_directory=output)
    print(f"API reference: {output / 'mp_loop.html'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
