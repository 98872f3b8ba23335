"""Sources of training data: prefetch in a thread, and grain's data sets."""

import threading
import traceback

import jax
import numpy as np
import pytest

from diffjax import training
from diffjax.training import Batches, GrainSource, PositionedSource, Prefetch, Source
from tests.training_problem import STEPS, assert_bitwise, initial

grain = pytest.importorskip("grain")


def batches():
    return Batches(np.arange(22.0), 4, seed=1)


def blocks_of(source, cuts):
    """Blocks between consecutive cuts, two of them in preparation at a time."""
    taken, spans = [], list(zip(cuts, cuts[1:], strict=False))
    with Prefetch(source) as ahead:
        for i, (start, stop) in enumerate([*spans, (None, None)]):
            if start is not None:
                ahead.start(start, stop - start)
            if i:
                taken.append(ahead.take())
        assert ahead.pending == 0 and ahead.waited >= 0.0
    return taken


def test_prefetched_blocks_are_those_of_the_source_in_order():
    """Of any sizes, on the device."""
    cuts = [3, 4, 8, 24, 25]
    for block, (start, stop) in zip(
        blocks_of(batches(), cuts), zip(cuts, cuts[1:], strict=False), strict=True
    ):
        assert isinstance(block, jax.Array)
        np.testing.assert_array_equal(block, batches().block(start, stop - start))


class Failing:
    """A source whose seventh step cannot be read."""

    batch_size = 4

    def block(self, step, count):
        if step <= 7 < step + count:
            return self.read_of_the_seventh()
        return np.zeros((count, 4))

    def read_of_the_seventh(self):
        raise OSError("disk is gone")


@pytest.mark.parametrize("error", [OSError, TimeoutError, SystemExit])
def test_an_error_of_the_thread_is_raised_by_take_with_its_traceback(error):
    """And the thread goes on with the blocks after it."""
    source = Failing()
    source.read_of_the_seventh = lambda: throw(error("disk is gone"))
    with Prefetch(source) as ahead:
        for step in (0, 4, 8):
            ahead.start(step, 4)
        assert ahead.take().shape == (4, 4)
        with pytest.raises(error, match="disk is gone") as raised:
            ahead.take()
        frames = [
            frame.name for frame in traceback.extract_tb(raised.value.__traceback__)
        ]
        assert "throw" in frames and "block" in frames
    with pytest.raises(OSError, match="disk is gone"):
        blocks_of(Failing(), [0, 4, 8])


def throw(error):
    raise error


def test_a_source_that_hangs_keeps_nobody_waiting():
    """Not the wait that a signal ends, nor the end, after which nothing is placed."""
    release, entered, placed = threading.Event(), threading.Event(), []

    class Hanging:
        batch_size = 1

        def block(self, step, count):
            entered.set()
            release.wait()
            return np.zeros((count, 1))

    with Prefetch(Hanging(), placed.append) as ahead:
        ahead.start(0, 1)
        entered.wait()
        assert ahead.take(stopped=lambda: True) is None and ahead.pending == 1
        looks = iter([False, False, True])
        assert ahead.take(stopped=lambda: next(looks)) is None
        thread = ahead._thread
    release.set()
    thread.join()
    assert not placed


def test_prefetch_argument_errors():
    with pytest.raises(TypeError, match=r"source must have block\(step, count\)"):
        Prefetch(np.zeros(3))
    with pytest.raises(TypeError, match="place must be"):
        Prefetch(batches(), 3)
    with Prefetch(batches()) as ahead, pytest.raises(ValueError, match="take must"):
        ahead.take()


def test_a_block_outside_of_the_context_is_an_error_and_no_wait():
    ahead = Prefetch(batches())
    ahead.start(0, 1)
    with pytest.raises(ValueError, match="take must be called within"):
        ahead.take()
    with ahead:
        ahead.take()
    ahead.start(1, 1)
    with pytest.raises(ValueError, match="take must be called within"):
        ahead.take()


def numbers(count=22):
    """A shuffled data set of the numbers below `count`."""
    dataset = grain.MapDataset.range(count).seed(3).shuffle()
    return dataset.map(lambda i: {"x": np.full(2, i)})


@pytest.mark.parametrize("made", [numbers, lambda: numbers().to_iter_dataset()])
def test_a_batch_of_grain_depends_on_its_step_alone(made):
    """In sequence, out of order, after jumps, and on a new object."""
    source = GrainSource(made(), 4, threads=2, ahead=2)
    assert isinstance(source, Source)
    whole = source.block(0, 12)["x"]
    assert whole.shape == (12, 4, 2)
    for step, count in ((12, 1), (5, 3), (8, 2), (0, 1), (7, 4)):
        read = source.block(step, count)["x"]
        if step < 12:
            np.testing.assert_array_equal(read, whole[step : step + count])
    again = GrainSource(made(), 4).block(9, 2)["x"]
    np.testing.assert_array_equal(again, whole[9:11])


def test_grain_visits_each_example_once_an_epoch_in_new_orders():
    """Four epochs are 22 batches. An endless data set is not repeated again."""
    for dataset in (numbers(), numbers().repeat()):
        epochs = GrainSource(dataset, 4).block(0, 22)["x"][..., 0].reshape(4, 22)
        assert (np.sort(epochs, 1) == np.arange(22)).all()
        assert (epochs[0] != epochs[1]).any()


def examples(read, shuffled):
    """A data set without random access, of examples of the training problem. The
    number of each that is read is appended to `read`.
    """

    def example(i):
        read.append(int(i))
        x = np.sin(np.arange(3.0) * (i + 1))
        return {"x": x.astype(np.float32), "y": np.float32(x.sum())}

    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.range(22).to_iter_dataset(alone)
    if shuffled:
        dataset = grain.experimental.WindowShuffleIterDataset(
            dataset, window_size=8, seed=1
        )
    return dataset.map(example)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_resumed_training_reads_on_from_the_state_of_the_iterator(tmp_path, shuffled):
    """It equals the uninterrupted one bit for bit, and drops no example."""

    def train(folder, total):
        read = []
        source = GrainSource(examples(read, shuffled), 8)
        read.clear()
        with training.Checkpoints(folder, {}, source=source) as checkpoints:
            state = checkpoints.restore_latest(initial()) or initial()
            settings = {"checkpoints": checkpoints, "save_every": 4, "block": 4}
            state = training.fit(state, STEPS, source, total, **settings)
        return state, read

    whole, every = train(tmp_path / "whole", 12)
    _, first = train(tmp_path / "run", 6)
    resumed, rest = train(tmp_path / "run", 12)
    assert_bitwise(resumed, whole)
    assert first + rest == every and len(every) == 12 * 8


def test_positions_of_grain_are_those_of_the_last_blocks():
    """A position serves a step after it too. One of another version is no use, and
    a data set with random access needs none.
    """
    source, read = GrainSource(examples([], True), 4), []
    assert isinstance(source, PositionedSource) and source.position(0) is None
    whole = source.block(0, 12)["y"]
    source = GrainSource(examples([], True), 4)
    for step in range(0, 12, 2):
        source.block(step, 2)
    assert [source.position(n)["step"] for n in (2, 5, 12)] == [2, 4, 12]
    position = source.position(5)
    for stored, count in ((position, 8), (position | {"grain": "0"}, 24)):
        read.clear()
        other = GrainSource(examples(read, True), 4)
        read.clear()
        other.continue_from(stored)
        np.testing.assert_array_equal(other.block(5, 1)["y"], whole[5:6])
        assert len(read) == count
    source = GrainSource(numbers(), 4)
    source.block(0, 2)
    assert source.position(2) is None


def test_an_error_in_decoding_is_raised_and_the_source_goes_on():
    def decode(i):
        return throw(OSError(f"record {i}")) if i == 9 else np.asarray(i)

    dataset = grain.MapDataset.range(22).map(decode)
    source = GrainSource(dataset, 4, threads=2, ahead=2)
    assert source.block(0, 2).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(OSError, match="record 9"):
        source.block(2, 1)
    assert source.block(3, 1).tolist() == [[12, 13, 14, 15]]


def test_grain_argument_errors():
    with pytest.raises(TypeError, match="dataset must be a grain.MapDataset or"):
        GrainSource([1, 2], 4)
    for empty in (
        grain.MapDataset.range(0),
        grain.MapDataset.range(0).to_iter_dataset(),
    ):
        with pytest.raises(ValueError, match="dataset must have examples, got none"):
            GrainSource(empty, 4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        GrainSource(numbers(), 0)
