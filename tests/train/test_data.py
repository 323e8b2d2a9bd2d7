from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch

from sparsify.errors import UserError
from sparsify.train import Arrays, Data, Windows, load_data
from sparsify.train.data import split


def test_digits_are_standardised_and_split_class_by_class():
    data = load_data("digits")
    (x,), y = data.train.inputs, data.train.targets
    assert x.dtype == torch.float32 and x.shape[1:] == (1, 8, 8)
    assert len(data.train) + len(data.test) == 1797
    assert abs(float(x.mean())) < 1e-5 and float(x.std()) == pytest.approx(1, abs=1e-5)
    for label in range(10):
        test, train = int((data.test.targets == label).sum()), int((y == label).sum())
        assert test / (test + train) == pytest.approx(0.25, abs=0.005)
    assert data.digest() == load_data("digits").digest()


def test_the_split_has_no_overlap_and_depends_on_the_seed():
    labels = torch.arange(100) % 4
    train, test = split(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
    assert torch.equal(test, split(labels)[1])
    assert not torch.equal(test, split(labels, seed=1)[1])


def write_idx(path, array, compress):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, compress):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 28, 28)), rng.integers(0, 10, 20)
    end = ".gz" if compress else ""
    for part, rows in (("train", slice(0, 15)), ("t10k", slice(15, 20))):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{end}", images[rows], compress)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{end}", labels[rows], compress)
    data = load_data(f"fashion-mnist:{tmp_path}")
    assert data.train.inputs[0].shape == (15, 1, 28, 28)
    assert data.test.targets.tolist() == labels[15:].tolist()
    train = images[:15].astype(np.float32)
    expected = (images[15:] - train.mean()) / train.std(ddof=1)
    np.testing.assert_allclose(data.test.inputs[0][:, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_missing_fashion_mnist_names_the_debian_package(tmp_path):
    with pytest.raises(UserError, match="apt install dataset-fashion-mnist"):
        load_data(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x63\x01\0\0\0\x01a"])
def test_a_damaged_idx_file_is_named(tmp_path, content):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UserError, match="train-images-idx3-ubyte is not a readable IDX file"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_npz_arrays_decide_the_task(tmp_path):
    x = np.arange(40, dtype=np.float64).reshape(20, 2)
    np.savez(tmp_path / "classes.npz", x=x, y=np.arange(20) % 2)
    np.savez(tmp_path / "values.npz", x_train=x, y_train=x[:, 0], x_test=x[:4], y_test=x[:4, 0])
    classes, values = load_data(f"npz:{tmp_path}/classes.npz"), load_data(f"npz:{tmp_path}/values.npz")
    assert (classes.task, len(classes.train), len(classes.test)) == ("classification", 16, 4)
    assert (values.task, values.train.targets.dtype) == ("regression", torch.float32)
    batch = values.train.batch(torch.tensor([3, 1]))
    assert batch.args[0].tolist() == [[6, 7], [2, 3]] and batch.targets.tolist() == [6, 2]


def test_npz_without_the_names_or_with_pickles_is_refused(tmp_path):
    np.savez(tmp_path / "names.npz", images=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "sizes.npz", x=np.zeros((3, 1)), y=np.zeros(2))
    for name, message in (
        ("names", "must hold x_train"),
        ("pickled", "not a readable"),
        ("text", "not a readable"),
        ("absent", "not a readable"),
        ("sizes", "x has 3 examples, y has 2"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(f"npz:{tmp_path}/{name}.npz")


def test_text_is_windows_of_bytes_with_the_next_byte_as_target(tmp_path):
    (tmp_path / "b.txt").write_bytes(bytes(range(100, 200)))
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 100)))
    (tmp_path / "c.bin").write_bytes(b"\0\1\2")
    data = load_data(f"text:{tmp_path}", sequence_length=8)
    assert data.task == "language"
    batch = data.train.batch(torch.tensor([1, 0]))
    assert batch.args[0].tolist() == [list(range(9, 17)), list(range(1, 9))]
    assert batch.targets.tolist() == [list(range(10, 18)), list(range(2, 10))]
    assert isinstance(data.test, Windows)
    assert data.test.tokens.tolist() == list(range(180, 200)), (
        "the tail is for tests and appears nowhere else"
    )
    assert 180 not in data.train.tokens


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(UserError, match="too few for windows of 128"):
        load_data(f"text:{tmp_path}/short.txt")
    with pytest.raises(UserError, match="no file or folder"):
        load_data(f"text:{tmp_path}/absent")


def test_a_function_of_the_user_is_called():
    data = load_data("tests.train.tasks:points_as_mapping")
    assert data.task == "classification" and len(data.train) + len(data.test) == 72
    assert isinstance(load_data("tests.train.tasks:points"), Data)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tests.train.tasks:absent", "cannot be imported"),
        ("no.such.module:data", "cannot be imported"),
        ("tests.train.tasks:nothing", "returned NoneType"),
        ("cifar", "unknown data 'cifar'"),
        ("npz:", "unknown data"),
        ("digits:8", "cannot be imported|unknown data"),
    ],
)
def test_other_specs_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        load_data(spec)


def test_arrays_of_different_length_and_empty_ones_are_refused():
    with pytest.raises(UserError, match="differ"):
        Arrays((torch.zeros(3, 1),), torch.zeros(2))
    with pytest.raises(UserError, match="no examples"):
        Arrays((torch.zeros(0, 1),), torch.zeros(0))
