"""Shows how numbers are stored: `python -m mp_loop.formats VALUE...`.

    python -m mp_loop.formats 0.1 65504 2^-24 1/3 float16:0x7bff

For each value and each type: sign, exponent and mantissa, the number that is
stored, its neighbours and the rounding error, the smallest change that changes a
weight of that value, and the loss scales at which float16 keeps it as a gradient.
The table of ranges follows; without a value only this table is printed.

A VALUE is a decimal number (1e-8), a power (2^-24), a fraction (1/3), inf, nan,
or the bits of a type (float16:0x7bff); after -- every word is one. Nothing is
rounded on the way: values are exact until they are stored. Exit codes: 0 done, 2 an
argument is not a VALUE.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mp_loop.cli import streams
from mp_loop.numerics import float_tables


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    end = words.index("--") if "--" in words else len(words)
    flags, values = words[:end], words[end + 1 :]
    if {"-h", "--help"} & set(flags):
        print(__doc__)
        return 0
    try:
        blocks = [float_tables.of_value(word) for word in (*flags, *values)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n\n".join([*blocks, float_tables.ranges()]), flush=True)
    return 0


if __name__ == "__main__":
    streams.keep_going()
    sys.exit(main(sys.argv[1:]))
