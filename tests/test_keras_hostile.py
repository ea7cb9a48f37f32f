"""Files that would crash HDF5, take ever more time or memory or garble a terminal are refused."""

import json
import re
import zipfile

import h5py
import numpy as np
import pytest

from dogwood_jax import keras_h5
from dogwood_jax._base.command import show
from dogwood_jax.keras_h5._files.binary import checksum


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


def small(path, libver=None, **storage):
    """Writes a model of one layer; returns its kernel."""
    kernel = np.arange(32, dtype=np.float32).reshape(8, 4) // 3
    with h5py.File(path, "w", libver=libver) as file:
        layer = file.create_group("dense")
        layer.create_dataset("kernel", data=kernel, **storage)
        layer["bias"] = np.zeros(4, np.float32)
        layer.attrs["weight_names"], file.attrs["layer_names"] = [b"kernel", b"bias"], [b"dense"]
        file.attrs["note"] = 777 * "x"
    return kernel


def patched(path, signature, index, *changes):
    """Changes bytes of a structure, by their offsets in it, where it comes for the n-th time."""
    data = bytearray(path.read_bytes())
    places = [found.start() for found in re.finditer(signature, data)]
    for offset, value in changes:
        value = value(places[index]) if callable(value) else value
        data[places[index] + offset : places[index] + offset + len(value)] = value
    path.write_bytes(data)


def address(place):
    return place.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("signature", "index", "changes", "message"),
    [
        # B-trees of level 1 whose first child is the tree itself, or of the same level.
        (b"TREE\0", 0, [(5, b"\1"), (32, address)], "expected a B-tree with one reference to it"),
        (
            b"TREE\1",
            0,
            [(5, b"\1\1\0"), (56, address)],
            "expected a B-tree with one reference to it",
        ),
        (b"TREE\0", 0, [(5, b"\2")], "expected a B-tree of kind 0 and level 1; found none"),
        # A free block at byte 24 of a heap that comes before itself.
        (b"HEAP", 0, [(16, address(24)), (32 + 24, address(24))], "free blocks that ends"),
        (b"HEAP", 0, [(8, address(1 << 40))], "a heap of names within the file; found one of 1,0"),
        # A string has 777 characters in the heap, and 265 by its pointer.
        (
            b"\x09\3\0\0(?!\0\0\0\0)",
            0,
            [(1, b"\1")],
            "note to have its strings .* one of 265 bytes",
        ),
        (b"SNOD", 0, [(8, address(1 << 20))], "names inside their heap; found one outside"),
        (b"TREE\1", 0, [(24, b"\xff")], "expected chunks of 32 bytes; found one of another size"),
        (b"\3\2\3", 0, [(2, b"\4")], "expected chunks of 2 axes"),
    ],
)
def test_structures_of_hdf5(signature, index, changes, message, tmp_path):
    small(tmp_path / "x.h5", chunks=(4, 2))
    patched(tmp_path / "x.h5", signature, index, *changes)
    with pytest.raises(keras_h5.KerasFileError, match=message):
        keras_h5.load(tmp_path / "x.h5")


def test_many_links_of_which_a_name_is_not_ascii(tmp_path):
    """HDF5 keeps these in a heap, which a B-tree of version 2 leads to."""
    names = [f"层_{i}" for i in range(60)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in names:
            file.create_group(name)["kernel"] = np.ones((3, 2))
            file[name].attrs["weight_names"] = [b"kernel"]
        file.attrs["layer_names"] = [name.encode() for name in names]
    assert list(keras_h5.load(tmp_path / "x.h5")["params"]) == names
    good = (tmp_path / "x.h5").read_bytes()
    tree = good.rindex(b"BTHD")
    circle = bytearray(good[tree : tree + 34])
    circle[12:14], circle[16:24] = b"\1\0", address(tree)  # of two levels, and its own root
    circle += checksum(bytes(circle)).to_bytes(4, "little")
    patched(tmp_path / "x.h5", b"BTHD", -1, (0, circle))
    with pytest.raises(keras_h5.KerasFileError, match="version 2 with one reference to it"):
        keras_h5.load(tmp_path / "x.h5")
    (tmp_path / "x.h5").write_bytes(good)
    patched(tmp_path / "x.h5", b"FHDB", -1, (60, b"!"))
    with pytest.raises(keras_h5.KerasFileError, match="a heap of links with its own checksum"):
        keras_h5.load(tmp_path / "x.h5")


def new_superblock(path):
    small(path, "latest")


def new_header(path):
    with h5py.File(path, "w", track_order=True) as file:
        file["dense/kernel"], file.attrs["layer_names"] = np.ones((2, 2)), [b"dense"]


def new_index(path):
    small(path, chunks=(8, 4))
    patched(path, b"\3\2\3", 0, (0, b"\4"))  # the version of the message that says where chunks are


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (new_superblock, "expected a superblock of version 0 or 1, .* found [23]"),
        (new_header, "expected an object's header of version 1, .* found one of version 2"),
        (new_index, "at /dense/kernel: expected an array in a layout as Keras writes it"),
    ],
)
def test_what_keras_never_writes_is_refused_with_a_way_out(write, message, tmp_path):
    write(tmp_path / "x.h5")
    with pytest.raises(keras_h5.KerasFileError, match=message) as error:
        keras_h5.load(tmp_path / "x.h5")
    assert "h5repack -l CONTI old.h5 new.h5" in str(error.value)


@pytest.mark.parametrize(
    "storage",
    [
        {"shuffle": True},
        {"fletcher32": True},
        {"compression": "lzf", "shuffle": True, "fletcher32": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
    ],
)
def test_filters(storage, tmp_path):
    kernel = small(tmp_path / "x.h5", **{"chunks": (8, 3), **storage})
    found = keras_h5.load(tmp_path / "x.h5")["params"]["dense"]["kernel"]
    np.testing.assert_array_equal(found, kernel)


def test_strings_in_chunks_are_copied(tmp_path):
    kernel = small(tmp_path / "x.h5")
    names = np.array(["a", "bc"] * 3, object)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.create_dataset("names", data=names, dtype=h5py.string_dtype(), chunks=(4,))
    keras_h5.save(tmp_path / "y.h5", keras_h5.load(tmp_path / "x.h5"), like=tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5") as file:
        assert file["names"].asstr()[()].tolist() == names.tolist()
        np.testing.assert_array_equal(file["dense/kernel"], kernel)


# LZF's 1 byte as it is, and then copies of it: 3 bytes for up to 264.
@pytest.mark.parametrize(
    ("compression", "chunk"),
    [("lzf", b"\0a" + b"\xe0\xff\0" * 999), ("lzf", b"\0a"), ("gzip", b"x\x9cc\0\0\0\1\0\1")],
    ids=["large", "small", "small gzip"],
)
def test_chunks_that_are_none(compression, chunk, tmp_path):
    small(tmp_path / "x.h5", chunks=(8, 4), compression=compression)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["dense/kernel"].id.write_direct_chunk((0, 0), chunk)
    with pytest.raises(keras_h5.KerasFileError, match="chunks of 128 bytes; found one of another"):
        keras_h5.load(tmp_path / "x.h5")


def test_json_of_many_objects(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", '{"a": [' + "{}," * 700_000 + "{}]}")
        small(tmp_path / "x.h5")
        archive.write(tmp_path / "x.h5", "model.weights.h5")
    with pytest.raises(keras_h5.KerasFileError, match="at config.json: expected JSON of at most"):
        keras_h5.load(tmp_path / "x.keras")


def test_names_are_shown_as_text_and_cut(tmp_path, capsys):
    name = "dense\x1b[2J\r\n\u202e\x9b" + 4000 * "x"
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file[f"{name}/kernel"] = np.full((3, 2), np.nan)
        file.attrs["layer_names"], file[name].attrs["weight_names"] = [name], ["kernel"]
    shown = [str(keras_h5.inspect(tmp_path / "x.h5"))]
    with pytest.warns(RuntimeWarning, match="NaN") as warned:
        keras_h5.load(tmp_path / "x.h5")
    shown.append(str(warned[0].message))
    show(name[:20].replace("\n", r"\n"))  # as the command line says everything
    shown.append(capsys.readouterr().out)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file[name].attrs["weight_names"]
    with pytest.raises(keras_h5.KerasFileError) as error:
        keras_h5.load(tmp_path / "x.h5")
    for text in (*shown, str(error.value)):
        assert r"dense\x1b[2J\r\n\u202e\x9b" in text and len(text) < 1500
        assert text.replace("\n", "").isprintable()


def split_names(file):
    file.attrs["layer_names0"], file.attrs["layer_names2"] = file.attrs["layer_names"], ["b"]
    del file.attrs["layer_names"]


def one_name(file):
    file["dense"].attrs["weight_names"] = "kernel"


def opaque(file):
    del file["dense/bias"]
    file["dense/bias"] = np.zeros(4, "V2")
    file["dense/bias"].attrs["dtype"] = "float8"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            split_names,
            "attributes layer_names0, .* without a gap; found layer_names0, layer_names2",
        ),
        (one_name, "at /dense: expected a list of names in attribute weight_names"),
        (opaque, "at /dense/bias: .* found an array of float8 in opaque bytes"),
    ],
)
def test_what_says_half(write, message, tmp_path):
    small(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        write(file)
    with pytest.raises(keras_h5.KerasFileError, match=message):
        keras_h5.load(tmp_path / "x.h5")


def test_weights_need_no_optimizer(tmp_path):
    kernel = small(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs["training_config"] = "{"
    found = keras_h5.load(tmp_path / "x.h5")["params"]["dense"]["kernel"]
    np.testing.assert_array_equal(found, kernel)
    problem = "at attribute training_config: expected JSON"
    assert problem in str(keras_h5.inspect(tmp_path / "x.h5"))
    with pytest.raises(keras_h5.KerasFileError, match=problem):
        keras_h5.load_optimizer(tmp_path / "x.h5")


@pytest.mark.parametrize("metadata", [b"{", b"\xff"])
def test_weights_need_no_version(metadata, tmp_path):
    layer = {"class_name": "Dense", "config": {"name": "dense", "units": 1, "use_bias": False}}
    model = {"class_name": "Sequential", "config": {"name": "model", "layers": [layer]}}
    with h5py.File(tmp_path / "weights", "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 1))
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("metadata.json", metadata)
        archive.write(tmp_path / "weights", "model.weights.h5")
    variables = keras_h5.load(tmp_path / "x.keras")
    assert variables["params"]["dense"]["kernel"].shape == (2, 1)
    assert "the version of Keras is not known: " in str(keras_h5.inspect(tmp_path / "x.keras"))
    with pytest.raises(
        keras_h5.KerasFileError, match="expected the version of Keras, because layers differ"
    ):
        keras_h5.load_model(tmp_path / "x.keras")
    keras_h5.save(tmp_path / "y.keras", variables, like=tmp_path / "x.keras")
    assert zipfile.ZipFile(tmp_path / "y.keras").read("metadata.json") == metadata


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
        (in_itself(400), "nested too deep|more than some nesting"),
    ],
    ids=["calls", "nesting"],
)
def test_models_in_models(config, message, tmp_path):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.create_group("model_weights").attrs["layer_names"] = []
    with pytest.raises(keras_h5.KerasFileError, match=message):
        keras_h5.load_model(tmp_path / "model.h5")
