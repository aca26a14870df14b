"""Micro-batches are halved when memory runs out; results and progress do not notice."""

import pytest
import tiny
import torch

from dinv.execution.memory import FittingBatch
from dinv.inversion.bank import load_part
from dinv.inversion.image_embeddings import InvertTask, InvertWorker


def small_device(limit):
    """compute(size, advance) of 10 units on a device that holds `limit` of them at once."""

    def compute(size, advance):
        for _ in range(10 // size):
            advance(size)
            if size > limit:
                raise torch.OutOfMemoryError
        advance(10 % size)
        return size

    return compute


@pytest.mark.parametrize(("start", "limit", "expected"), [(10, 10, 10), (10, 3, 3), (8, 2, 2), (10, 1, 1)])
def test_halves_until_it_fits_and_remembers(start, limit, expected):
    batch, units = FittingBatch(start), []
    assert batch.run(small_device(limit), units.append) == expected == batch.size
    assert sum(units) == 10
    units.clear()
    batch.run(small_device(limit), units.append)
    assert min(units) >= 0


def test_one_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        FittingBatch(4).run(small_device(0), lambda n: None)


def test_inversion_goes_on_with_smaller_batches(grey_model_folder, tmp_path, monkeypatch):
    model = tiny.load_tiny(grey_model_folder)
    task = InvertTask(
        tiny.random_images(5, channels=1), torch.zeros(5, dtype=torch.int64).numpy(), list("abcde")
    )
    params = tiny.invert_params(num_visits=3)
    expected = InvertWorker(lambda: model, params, 2).compute(task, lambda n: None)
    predict = model.predict

    def limited(z_t, t, c):
        if len(z_t) > 2:
            raise torch.OutOfMemoryError
        return predict(z_t, t, c)

    monkeypatch.setattr(model, "predict", limited)
    units = []
    found = InvertWorker(lambda: model, params, 4).compute(task, units.append)
    assert found == expected and sum(units) == 15
    (tmp_path / "part").write_bytes(found)
    assert load_part(tmp_path / "part").ids == task.ids
