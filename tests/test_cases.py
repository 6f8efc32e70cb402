"""Tables, folders, images and IDX files as people have them: each is read rightly, or refused in one helpful line."""

import warnings

import numpy as np
import pytest

from mirigor_jax.data import array_files
from mirigor_jax.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(20, 2)).round(3)
LINES = [f"{a},{b}" for a, b in ROWS.tolist()]
INDEXED = [f"{i},{line}" for i, line in enumerate(LINES)]
LEFT_OUT = "its first column has no title and counts the rows; it is left out"


def told(read, *arguments):
    """(the result of `read`, its warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = read(*arguments)
    return result, [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        (LINES, None),
        (["a,b", *LINES], None),
        (["0,1", *LINES], "its first line, '0,1', is taken for a header"),
        (["a,2020", *LINES], "its first line, 'a,2020', is taken for a header"),
        ([",a,b", *INDEXED], LEFT_OUT),
        ([",0,1", *INDEXED], LEFT_OUT),
        (["Unnamed: 0,a,b", *INDEXED], LEFT_OUT),
    ],
)
def test_headers_and_indexes_of_tables_are_no_samples(tmp_path, lines, warned):
    (tmp_path / "x.csv").write_text("\n".join(lines))
    read, said = told(array_files.read, f"{tmp_path}/x.csv", "x")
    np.testing.assert_array_equal(read, ROWS)
    assert said == ([f"x='{tmp_path}/x.csv': {warned}"] if warned else [])


@pytest.mark.parametrize("header", [["id,a,b"], []])
def test_a_titled_column_that_counts_the_rows_is_kept_and_said(tmp_path, header):
    (tmp_path / "x.csv").write_text("\n".join([*header, *INDEXED]))
    read, said = told(array_files.read, f"{tmp_path}/x.csv", "x")
    np.testing.assert_array_equal(read, np.column_stack([np.arange(20), ROWS]))
    assert said == [f"x='{tmp_path}/x.csv': its first column counts the rows; leave it out if it is an index"]


def test_a_first_line_of_whole_numbers_above_whole_numbers_is_a_sample_and_said(tmp_path):
    (tmp_path / "x.csv").write_text("0,1\n3,1\n2,2\n")
    read, said = told(array_files.read, f"{tmp_path}/x.csv", "x")
    assert read.tolist() == [[0, 1], [3, 1], [2, 2]]
    assert len(said) == 1
    assert "is taken for a sample; delete it if it is a header" in said[0]


TABLES = {
    "x\n0,53\n-0,27\n": r"line 2 has 2 cells, but the header has 1; a decimal comma\? write decimal points",
    "a,b\nr1,0.5,0.3\n": "line 2 has 3 cells, but the header has 2; row names\\? give their column a title",
    "a,b,c\n1,2\n": "line 2 has 2 cells, but the header has 3; give as many",
    "NA,1\n2,3\n4,5\n": "1 value is missing, the first in line 1, column 1; drop those rows",
    "a,b\nNA,1\n2,3\n": "1 value is missing, the first in line 2, column 1",
    "a,b\n1,1\n2,nan\n4,\n": "2 values are missing, the first in line 3, column 2",
    "a\n1\n\n2\n": "1 value is missing, the first in line 3;",
    "a;b\n1;2\n": "separated by semicolons; give commas",
    "a;b\n1,5;2,5\n": "separated by semicolons; give commas between cells, and points in numbers",
    "a\tb\n1\t2\n": "separated by tabs",
    "a b\n1 2\n3 4\n": "separated by spaces",
    'a\n"1,000"\n': "line 2, '1,000' is no number; write thousands without commas",
    "a\n1_0\n": "line 2, '1_0' is no number",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_table_that_is_none_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=TABLES[text]) as error:
        array_files.read(f"{tmp_path}/x.csv", "x")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"x='{tmp_path}/x.csv' cannot be read: ")


LABELS = {
    "l\n0\n0\n\n1\n": "1 label is missing, the first in line 4",
    "NA\n0\n1\n": "1 label is missing, the first in line 1",
    "a;b\n0;1\n1;1\n": "separated by semicolons",
    "a,b,c\n1,0,0\n0,1,0\n0,0,1\n": r"one-hot\? give their argmax",
    ".5\n.25\n": "no whole numbers, the first, 0.5, at row 0; a regression target",
}


@pytest.mark.parametrize("text", LABELS)
def test_labels_that_are_none_are_refused_with_their_line(tmp_path, text):
    (tmp_path / "y.csv").write_text(text)
    with pytest.raises(InputError, match=LABELS[text]):
        array_files.read_labels(f"{tmp_path}/y.csv")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"{10**21 + i % 2}" for i in range(6)], ["1" + 21 * "0", "1" + 20 * "0" + "1"]),
        ([",label", *(f"{i},{'ab'[i % 2]}" for i in range(6))], ["a", "b"]),
        (["tumor", "none", "glioma"] * 2, ["glioma", "none", "tumor"]),
    ],
)
def test_labels_of_a_table_are_kept_apart(tmp_path, lines, expected):
    (tmp_path / "y.csv").write_text("\n".join(lines))
    read, said = told(array_files.read_labels, f"{tmp_path}/y.csv")
    assert len(read) == 6
    assert sorted(set(read)) == expected
    assert said == ([] if lines[0] != ",label" else [f"labels='{tmp_path}/y.csv': {LEFT_OUT}"])
