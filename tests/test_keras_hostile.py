"""Small files that would take ever more time or memory are refused at once."""

import json

import h5py
import numpy as np
import pytest

from dogwood_jax import keras_h5


def doubling(file, link):
    """Groups in groups, each twice: as many places as 2 to the power of their number."""
    group = file.create_group("layers/dense")
    group["vars/0"] = np.ones((3, 2))
    for i in range(40):
        inner = file.create_group(f"optimizer/group_{i}")
        group["a"], group["b"] = link(inner), link(inner)
        group = inner


def hard_links(file):
    doubling(file, lambda group: group)


def soft_links(file):
    doubling(file, lambda group: h5py.SoftLink(group.name))


def a_deep_group(file):
    file["layers/" + "a/" * 3000 + "vars/0"] = np.ones(3)


def a_huge_chunk(file):
    chunks = (1 << 15, 1 << 13)  # 1 GiB, of which all but 24 bytes are behind the array's end
    options = {"chunks": chunks, "maxshape": (None, None), "compression": "gzip"}
    file.create_dataset("layers/dense/vars/0", (3, 2), np.float32, **options)


def one_array_under_many_names(file):
    """200 times the 4 MB of one array, which fit into no more than 4 times the file and 64 MiB."""
    names = [f"kernel_{i}" for i in range(200)]
    layer = file.create_group("dense")
    layer["kernel"] = np.zeros((1000, 1000), np.float32)
    for name in names:
        layer[name] = h5py.SoftLink("/dense/kernel")
    layer.attrs["weight_names"], file.attrs["layer_names"] = names, ["dense"]


def links_in_a_circle(file):
    file["layers/dense/vars/0"] = h5py.SoftLink("/layers/dense/vars/1")
    file["layers/dense/vars/1"] = h5py.SoftLink("/layers/dense/vars/0")


def links_that_double_their_path(file):
    for i in range(40):
        file[f"a{i}"] = h5py.SoftLink(f"/a{i + 1}/a{i + 1}")
    file["a40"] = h5py.SoftLink("/")


def one_long_path_that_many_links_take(file):
    file["layers/dense/vars/0"] = np.ones((3, 2))
    file["long"] = h5py.SoftLink("/" + "./" * 30000 + "layers/dense/vars/0")
    for i in range(1000):
        file[f"layers/dense/vars/{i + 1}"] = h5py.SoftLink("/long")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (hard_links, "expected each group in one place"),
        (soft_links, "expected each group in one place"),
        (a_deep_group, "expected groups at most 64 deep"),
        (one_array_under_many_names, "at /dense/kernel: expected arrays of at most .* 800,000,000"),
        (links_in_a_circle, "at /layers/dense/vars: expected a path of at most 64 names to '[01]'"),
        (links_that_double_their_path, "at /: expected a path of at most 64 names to 'a0'"),
        (one_long_path_that_many_links_take, "expected a path of at most 64 names"),
        (a_huge_chunk, "at /layers/dense/vars/0: expected arrays of at most .* pass limit="),
    ],
)
def test_groups_and_arrays(write, message, tmp_path):
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        write(file)
    with pytest.raises(keras_h5.KerasFileError, match=message):
        keras_h5.load(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("part", ["layers/dense/", "layers/time_distributed/layer/"])
def test_layers_in_layers_are_looked_through_once(part, tmp_path):
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["inner/" + part * 20 + "vars/0"] = np.ones((3, 2))
    (layer,) = keras_h5.inspect(tmp_path / "model.weights.h5").layers
    assert [array.shape for array in layer.arrays] == [(3, 2)]


def calling(name, class_name, layer, calls):
    """A model that calls one layer so many times, each time with what it has returned."""
    arguments = [["x", 0, 0, {}], *([layer["name"], i, 0, {}] for i in range(calls - 1))]
    described = [
        {"class_name": kind, "name": config["name"], "config": config, "inbound_nodes": nodes}
        for kind, config, nodes in (
            ("InputLayer", {"name": "x", "batch_input_shape": [None, 3]}, []),
            (class_name, layer, [[argument] for argument in arguments]),
        )
    ]
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [[layer["name"], calls - 1, 0]]}
    return {"name": name, "layers": described, **ends}


def calling_twice(depth):
    config = calling("model_0", "ReLU", {"name": "relu"}, 1)
    for i in range(1, depth):
        config = calling(f"model_{i}", "Model", config, 2)
    return {"class_name": "Model", "config": config}


def in_itself(depth):
    layer = {"class_name": "ReLU", "config": {"name": "relu"}}
    for _ in range(depth):
        layer = {"class_name": "TimeDistributed", "config": {"name": "each", "layer": layer}}
    return {"class_name": "Sequential", "config": {"name": "model", "layers": [layer]}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (calling_twice(40), "expected at most 65,536 calls of layers, got 549,755,813,888"),
        (in_itself(400), "nested too deep"),
    ],
    ids=["calls", "nesting"],
)
def test_models_in_models(config, message, tmp_path):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.create_group("model_weights").attrs["layer_names"] = []
    with pytest.raises(keras_h5.KerasFileError, match=message):
        keras_h5.load_model(tmp_path / "model.h5")
