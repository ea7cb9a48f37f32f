"""What is left of a file when saving another in its place fails, or the process is killed."""

import errno
import os
import stat
import subprocess
import sys
import textwrap

import h5py
import jax
import numpy as np
import pytest
from test_keras_h5 import assert_same, small

from dogwood_jax import keras_h5


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("target", "name"),
    [(h5py.Group, "create_dataset"), (os, "fsync"), (os, "replace")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.parametrize("use_like", [False, True])
def test_a_failed_save_leaves_the_old_file(target, name, failure, use_like, tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    keras_h5.save(path, small())
    before = path.read_bytes()
    original, calls = getattr(target, name), []

    def fail(*args, **kwargs):
        calls.append(args)
        if name == "create_dataset" and len(calls) < 3:  # in the middle of the file
            return original(*args, **kwargs)
        raise failure

    monkeypatch.setattr(target, name, fail)
    with pytest.raises((type(failure), keras_h5.KerasFileError)):
        keras_h5.save(path, jax.tree.map(np.zeros_like, small()), like=path if use_like else None)
    monkeypatch.undo()
    assert calls and path.read_bytes() == before and os.listdir(tmp_path) == ["x.h5"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource", reason="limits the size of files, on Unix only")
    signal = pytest.importorskip("signal")
    path = tmp_path / "x.h5"
    keras_h5.save(path, small())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError):
            keras_h5.save(path, small(dense_1={"kernel": np.ones((100, 100))}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.h5"]


@pytest.mark.skipif(os.name != "posix", reason="Unix permissions and links")
def test_permissions_and_links_are_kept(tmp_path):
    path, link = tmp_path / "x.h5", tmp_path / "link.h5"
    plain = tmp_path / "plain"
    plain.touch()
    keras_h5.save(path, small())
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    link.symlink_to(path)
    variables = small(dense_2={"kernel": np.zeros((2, 3), "f")})
    keras_h5.save(link, variables)
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_same(keras_h5.load(path), variables)


_KILLED = """
    import os, signal, sys
    import h5py
    import numpy as np
    from dogwood_jax import keras_h5

    path = sys.argv[1]
    def variables(value):
        return {"dense_1": {"kernel": np.full((300, 300), value, "f")}}
    keras_h5.save(path, variables(0))
    places = [(h5py.Group, "create_dataset"), (os, "fsync"), (os, "replace")]
    for owner, name in places:
        for after in (False, True):
            original = getattr(owner, name)
            def dying(*args, **kwargs):
                if after:
                    original(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            child = os.fork()
            if not child:
                setattr(owner, name, dying)
                keras_h5.save(path, variables(1))
                os._exit(0)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
            print(name, after, keras_h5.load(path)["params"]["dense_1"]["kernel"].mean())
            keras_h5.save(path, variables(0))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed on Unix only")
@pytest.mark.long
def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "x.h5"
    program = [sys.executable, "-c", textwrap.dedent(_KILLED), str(path)]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    places = [f"{n} {a}" for n in ("create_dataset", "fsync", "replace") for a in (False, True)]
    assert said == [f"{place} {float(place == 'replace True')}" for place in places]
    # What was begun is in folders of its own, which no one takes for a file of weights.
    assert all(name == "x.h5" or name.startswith(".keras_h5-") for name in os.listdir(tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_is_neither_replaced_nor_waited_for(tmp_path):
    pipe, link = tmp_path / "x.h5", tmp_path / "link.h5"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, tmp_path):
        with pytest.raises(FileExistsError, match="expected a new name or a regular file"):
            keras_h5.save(path, small())
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(keras_h5.KerasFileError, match="expected a regular file; found a pipe"):
        keras_h5.load(link)
