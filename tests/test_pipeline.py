from functools import partial

import numpy as np
import pytest

from mirigor_jax.data import cdp
from mirigor_jax.data.pairing import parse
from mirigor_jax.data.pipeline import batches
from mirigor_jax.errors import InputError


def rows(start, stop):
    return {"row": np.arange(start, stop)}


def take(iterator, n):
    return [next(iterator)["row"].tolist() for _ in range(n)]


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1}, {"threads": 4, "prefetch": 4}, {"workers": 1}])
def test_batches_are_consecutive_rows_however_they_are_read(options):
    iterator = iter(batches(rows, batch_size=6, **options))
    assert take(iterator, 9) == np.arange(54).reshape(9, 6).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 3, "prefetch": 8}, {"workers": 1}])
def test_what_goes_on_begins_at_a_later_batch(options):
    iterator = iter(batches(rows, batch_size=4, first=3, **options))
    assert take(iterator, 2) == [[12, 13, 14, 15], [16, 17, 18, 19]]
    assert [b["row"].tolist() for b in batches(rows, batch_size=4, num_examples=9, first=1, **options)] == [
        [4, 5, 6, 7],
        [8],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"threads": 2}, {"workers": 1}])
def test_image_pairs_are_those_of_a_single_read(options):
    images = cdp.make(size=32)
    read = partial(parse("color", images.space).draw, images, 0, 0)
    iterator = iter(batches(read, batch_size=6, **options))
    streamed, direct = [next(iterator) for _ in range(4)], read(0, 24)
    for name, values in direct.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in streamed]), values)


def test_processes_read_contiguous_parts_of_each_batch():
    options = {"batch_size": 6, "num_examples": 16, "process_count": 3}
    parts = [[b["row"].tolist() for b in batches(rows, process_index=p, **options)] for p in range(3)]
    assert parts[0] == [[0, 1], [6, 7], [12]]
    whole = [parts[0][b] + parts[1][b] + parts[2][b] for b in range(3)]
    assert whole == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15]]


def test_the_last_batch_is_short_and_then_it_ends():
    assert [len(b["row"]) for b in batches(rows, batch_size=4, num_examples=10)] == [4, 4, 2]
    assert [len(b["row"]) for b in batches(rows, batch_size=4, num_examples=8)] == [4, 4]


@pytest.mark.parametrize("options", [{"threads": 2}, pytest.param({"workers": 1}, marks=pytest.mark.slow)])
def test_batches_are_placed_in_order(options):
    dataset = batches(rows, batch_size=4, place=lambda batch: {"row": batch["row"] * 10}, **options)
    iterator = iter(dataset)
    assert take(iterator, 2) == [[0, 10, 20, 30], [40, 50, 60, 70]]


def test_without_a_number_of_examples_it_never_ends():
    iterator = iter(batches(rows, batch_size=4, first=10**12))
    assert take(iterator, 1) == [[4 * 10**12 + i for i in range(4)]]


def test_an_error_in_reading_reaches_the_reader():
    def broken(start, stop):
        raise InputError("the disk is gone")

    with pytest.raises(InputError, match="the disk is gone"):
        next(iter(batches(broken, batch_size=2)))


@pytest.mark.parametrize("size", [0, 10])
def test_batches_must_divide_among_processes(size):
    with pytest.raises(InputError, match=f"batch size {size}: expected a multiple of the 4 processes"):
        batches(rows, batch_size=size, process_count=4)
