"""How numbers are stored, against NumPy and ml_dtypes, pattern by pattern."""

import math
import pathlib
import subprocess
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from mp_loop import formats

FORMATS = {form.name: form for form in formats.FORMATS}
DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
SMALL = [name for name in FORMATS if name != "float32"]


def patterns(name):
    """Every pattern of a small type; of float32, random ones and the edges."""
    form = FORMATS[name]
    if form.bits <= 16:
        return np.arange(2**form.bits)
    generator = np.random.default_rng(0)
    edges = [0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x80000000]
    return np.concatenate([edges, generator.integers(0, 2**32, 2000)])


def numbers(name, bits):
    """The patterns as NumPy's or ml_dtypes' numbers."""
    unsigned = np.dtype(f"uint{FORMATS[name].bits}")
    return np.asarray(bits).astype(unsigned).view(DTYPES[name])


def same(ours, theirs):
    """Equal, the sign of zero and NaN included."""
    theirs = float(theirs)
    if math.isnan(theirs):
        return isinstance(ours, float) and math.isnan(ours)
    signs = math.copysign(1, ours) == math.copysign(1, theirs)
    return signs and (ours == theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_every_pattern_is_decoded_and_encoded(name):
    form = FORMATS[name]
    bits = patterns(name)
    for pattern, number in zip(bits.tolist(), numbers(name, bits), strict=True):
        sign, magnitude = divmod(pattern, 2 ** (form.bits - 1))
        value = form.decode(magnitude, sign)
        assert same(value, number), hex(pattern)
        if not math.isnan(value):
            assert form.encode(value) == (sign, magnitude), hex(pattern)


@pytest.mark.parametrize("name", SMALL)
def test_rounding_is_that_of_the_type(name):
    form, dtype = FORMATS[name], DTYPES[name]
    top = form.bits - 1 - form.mantissa_bits
    generator = np.random.default_rng(1)
    spread = generator.uniform(-(2 ** (top - 1)) - 9, 2 ** (top - 1) + 1, 2000)
    random = np.ldexp(generator.normal(size=2000), spread.astype(int))
    stored = numbers(name, patterns(name)[: form.overflow]).astype(np.float64)
    stored = stored[:: max(1, len(stored) // 2000)]
    with np.errstate(over="ignore", under="ignore"):
        # Ties, and one float32 beside them; past the largest number as well.
        ties = ((stored[1:] + stored[:-1]) / 2).astype(np.float32)
        beyond = np.float32([float(form.largest) * f for f in (1.01, 1.04, 1.1, 2)])
        around = [np.nextafter(ties, np.float32(x)) for x in (-np.inf, np.inf)]
        values = np.concatenate([random.astype(np.float32), ties, *around, beyond])
        values = values[np.isfinite(values)]
        theirs = values.astype(dtype)
    for value, expected in zip(values.tolist(), theirs, strict=True):
        number = Fraction(value) if value else value
        assert same(form.store(number), expected), value


def test_a_value_is_rounded_once():
    just_above_a_tie = 1 + Fraction(1, 2**8) + Fraction(1, 2**60)
    assert FORMATS["bfloat16"].store(just_above_a_tie) == 1 + Fraction(1, 2**7)
    through_float32 = np.float32(float(just_above_a_tie)).astype(ml_dtypes.bfloat16)
    assert float(through_float32) == 1.0  # what two roundings would give


@pytest.mark.parametrize("name", FORMATS)
def test_the_ranges_are_those_of_the_type(name):
    form, info = FORMATS[name], ml_dtypes.finfo(DTYPES[name])
    assert form.largest == float(info.max)
    assert form.smallest_normal == float(info.smallest_normal)
    assert form.smallest == float(info.smallest_subnormal)
    assert (form.bits, form.mantissa_bits) == (info.bits, info.nmant)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_neighbours_are_the_next_numbers(name):
    form, dtype = FORMATS[name], DTYPES[name]
    for number in numbers(name, patterns(name)[:: 1 if name == "float32" else 31]):
        if np.isnan(number):
            continue
        value = float(number)
        exact = Fraction(value) if math.isfinite(value) and value else value
        below, above = form.neighbours(exact)
        with np.errstate(over="ignore", under="ignore"):
            assert below is None or below == float(np.nextafter(number, dtype(-np.inf)))
            assert above is None or above == float(np.nextafter(number, dtype(np.inf)))
        assert (below is None, above is None) == (value == -np.inf, value == np.inf)


@pytest.mark.parametrize("word", ["1", "0.1", "-0.1", "1e-5", "65472", "6e-8"])
def test_the_smallest_change_is_the_smallest_that_changes(word):
    form = FORMATS["float16"]
    weight = form.store(formats.parse(word))
    least, also = form.smallest_change(weight)
    sign = 1 if weight > 0 else -1
    less, more = least * Fraction(999, 1000), least * Fraction(1001, 1000)
    assert form.store(weight + sign * less) == weight
    assert form.store(weight + sign * more) != weight
    assert (form.store(weight + sign * least) != weight) == also


@pytest.mark.parametrize("word", ["1e-8", "1", "-3", "65504", "65519", "65521", "1e30"])
def test_the_scales_that_keep_a_gradient(word):
    form, value = FORMATS["float16"], formats.parse(word)
    low, high = formats.lossless_scales(value)

    def is_kept(power):
        scaled = abs(value) * Fraction(2) ** power
        return scaled >= form.smallest_normal and form.store(scaled) <= form.largest

    assert [power for power in range(low - 2, high + 3) if is_kept(power)] == list(
        range(low, high + 1)
    )


VALUES = {
    "0.1": Fraction(1, 10),
    "-1e-8": Fraction(-1, 10**8),
    ".5": Fraction(1, 2),
    "2^-24": Fraction(1, 2**24),
    "-2**3": Fraction(-8),
    "10^3": Fraction(1000),
    "1/3": Fraction(1, 3),
    "inf": math.inf,
    "-inf": -math.inf,
    "-0": -0.0,
    "nan": math.nan,
    "float16:0x7bff": Fraction(65504),
    "float16:0xfc00": -math.inf,
    "float8_e4m3fn:0b01111110": Fraction(448),
}


@pytest.mark.parametrize("word", VALUES)
def test_words_are_read_exactly(word):
    value, expected = formats.parse(word), VALUES[word]
    assert type(value) is type(expected)
    assert str(value) == str(expected)


BAD = [
    "", "abc", "--help=1", "1/0", "2^99999", "99^2", "1e99999", "float16:0x10000",
    "float17:1", "float16:", "float16:-1", "9" * 200, "0x10", "1,5",
]  # fmt: skip


@pytest.mark.parametrize("word", BAD)
def test_other_words_are_refused_in_one_line(word, capsys):
    assert formats.main(["1", word]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"VALUE ({word}) must be a number")
    assert captured.err.count("\n") == 1


SAID = {
    "subnormal": ("1e-5", "float16 0 00000 0010101000 subnormal, 0.1641 x 2^-14"),
    "underflow": ("1e-8", "float16 0 00000 0000000000 underflows to 0"),
    "overflow": ("70000", "float16 0 11111 0000000000 overflows to inf"),
    "no infinity": ("70000", "float8_e4m3fn 0 1111 111 overflows to NaN"),
    "stored": ("0.1", "float16 0.09991455078 0.09997558594 0.1000366211 -0.024 %"),
    "not moved": ("0.1", "float16 > 3.052e-05 2^-11.7 not moved"),
    "moved": ("0.1", "float32 >= 3.725e-09 2^-24.7 0.1122040525"),
    "scales": ("1e-8", "at loss scales from 2^13 to 2^42."),
    "ranges": ("nan", "float16 1+5+10 65504 6.10352e-05 5.96046e-08 2^-10 15"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_shown(name, capsys):
    word, said = SAID[name]
    assert formats.main([word]) == 0
    out = capsys.readouterr().out
    assert said in " ".join(out.split()), out
    assert max(map(len, out.splitlines())) <= 80


def test_the_process_needs_no_tensorflow():
    root = pathlib.Path(__file__).parents[1]
    program = (
        "import sys; from mp_loop import formats; code = formats.main(['-0.1']); "
        "assert not {'tensorflow', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("-0.1\n") and "ranges" in done.stdout


def test_help_is_the_docstring(capsys):
    assert formats.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("Shows how numbers are stored")


def test_a_reader_that_has_seen_enough_is_no_error():
    words = [sys.executable, "-m", "mp_loop.formats", *map(str, range(1, 400))]
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.readline()
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait() == 0
