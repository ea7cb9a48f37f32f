"""A training loop for any ``apply`` and any Optax optimizer, with many steps in a compiled call.

A data set of arrays lives on the device in its own dtype, uint8 for images, and is converted a
batch at a time. Its first axis runs over samples: inputs are ``[n, ...]``, labels are ``[n]`` for
classes and whatever the loss takes otherwise.

What is trained: every floating-point (or complex) leaf of ``variables``; leaves of other dtypes
pass through unchanged. In a Flax mapping ``{"params": ..., "batch_stats": ...}`` only the leaves
under ``"params"`` are trained and the other collections pass through: ``apply`` returns outputs
alone, so running statistics keep their values. The optimizer sees the tree of ``variables`` with
None in place of each leaf that is not trained. To keep more leaves as they are, close over them in
``apply``, or give them ``optax.set_to_zero()`` by ``optax.multi_transform``.

**Data larger than the memory** are given as a source of samples rather than as arrays: anything
with ``len(source)`` and ``source[i]``, a tuple (input, label) of NumPy arrays or numbers, alike in
shape and dtype for all ``i``. Grain calls this a random access data source, PyTorch a map-style
dataset. If the source has ``__getitems__``, from a list of indices to a list of tuples, that is
called instead, once a batch. Several threads read at once. While one chunk of 64 MiB is trained on,
the next one is read, so at most three chunks are in memory. Samples are shuffled as in arrays: each
epoch has a new permutation of *all* samples, not one within a window. So a run gives the same
result as with the same data in arrays. A source must be quick at any index, as array_record files
and memory maps are. With tensorflow-datasets (and neither TensorFlow nor a copy in memory)::

    records = tfds.data_source("mnist", split="train")
    source = grain.MapDataset.source(records).map(lambda r: (r["image"], r["label"]))
    run = training.fit(apply, variables, tx, source, epochs=10, batch_size=32, key=key)

**Growing between stages.** ``stages=`` in place of ``epochs=`` says how long the network trains in
each size. Growths are planned before any work, and the optimizer's state grows along::

    tx = dogwood_jax.growable(optax.adam(1e-3))
    stages = [Stage(epochs=2), Stage(sizes={"hidden": 128}, epochs=14)]
    run = training.fit(apply, variables, tx, data, stages=stages, batch_size=32, key=key)
    training.evaluate(run.apply, run.variables, test)

A deeper model, or a module whose configuration says its sizes, comes with its function:
``Stage(target=deep.init(key, x), apply=deep.apply, epochs=14)``. In place of ``epochs``, ``steps``
counts batches, and ``seconds`` ends a stage by the clock. A stage that ends within a pass over the
data leaves the rest of it to the next one, so each sample is seen once a pass. A further call of
``fit`` begins a new pass. ``dogwood_jax.cost(widths, stages=stages)`` counts FLOPs beforehand.

**Learning from a larger network.** ``distill`` is ``fit`` with a teacher: a network that has lost
units or layers heals on what the large one predicts, see the guide "Shrink, then heal".

**Several models at once**, from different seeds, say: stack their variables along a new first axis
and sum their losses, so that each has the gradient it would have alone. All see the same batches.
The optimizer must treat each number by itself, as Adam and SGD do; ``clip_by_global_norm`` would
not. To stack models of several widths, first grow the narrower ones by ``strategies.zeros()``: with
activations that are zero at zero, units that are all zero stay so. ::

    several = jax.vmap(model.init, (0, None))(jax.random.split(key, 8), inputs)

    def apply(several, inputs):  # outputs [8, batch, classes]
        # Without the copies, by (0, None), a CPU would transpose all kernels at each step.
        return jax.vmap(model.apply)(several, jnp.broadcast_to(inputs, (8, *inputs.shape)))

    def loss(outputs, labels):
        labels = jnp.broadcast_to(labels, outputs.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).sum(0)

On several devices, each trains some of them: variables on a mesh with ``PartitionSpec("models")``,
and ``sharding=NamedSharding(mesh, PartitionSpec())``, because all get the whole batch.

**On a CPU**, XLA splits each large operation over a thread per core, and the next one waits for
the slowest. With small layers this takes more of the CPU in all than one thread does, and beside
other busy programs it may take twice the time, because each operation waits for a thread that has
been put aside. The environment variable ``NPROC=1``, read when JAX starts, gives one thread, and
so do ``taskset -c 0`` and the like. This helps where programs share the cores, not on an idle
machine. ``JAX_COMPILATION_CACHE_DIR`` names a folder in which JAX keeps compiled programs for later
processes. With ``JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0`` it also keeps programs that compile
in less than a second, such as the epoch of a small model.

**On several devices** ``sharding`` says how each batch is split. ``variables`` stay where they are,
split as the caller has split them. With ``mesh = jax.make_mesh((4, 2), ("data", "model"))`` and
``sharding=NamedSharding(mesh, PartitionSpec("data"))``,

- data parallel: variables as they come from ``init``; they are copied to every device;
- tensor parallel: ``jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, "model")))``;
- FSDP: ``PartitionSpec("data")``, so that each device has a part and gathers the others' in turn.

The optimizer's state is split like the variables. Results do not depend on the devices, beyond
rounding. Arrays of data are copied to every device. Arrays that the caller has put on the mesh stay
as they are split. Of a source, each device gets its part of each batch and no more. ``apply`` need
not know of the mesh: its axes are automatic within the loop, whichever types they have outside.

**On several hosts**, after ``jax.distributed.initialize()``, each process makes the same call with
the same arguments: a mesh of all ``jax.devices()``, the same key, and variables either whole in
each process, with the same values, or global arrays (from an ``init`` jitted with
``out_shardings``, from Orbax). Data may be a source: each process reads only the samples of its own
devices. Or they are arrays, either the same in each process, or global ones, as
``jax.make_array_from_process_local_data`` makes them. The history is the same in every process.
``seconds`` is refused there, because clocks differ.
"""

from dogwood_jax._front.several import grow_several
from dogwood_jax._front.smaller.dormant import utility
from dogwood_jax._front.stages import Apply, Stage
from dogwood_jax.training.distill import distill
from dogwood_jax.training.loop import Preprocess, Run, evaluate, fit, scale_uint8
from dogwood_jax.training.schedule import constant_then_decay
from dogwood_jax.training.teacher import Loss

__all__ = [
    "Apply",
    "Loss",
    "Preprocess",
    "Run",
    "Stage",
    "constant_then_decay",
    "distill",
    "evaluate",
    "fit",
    "grow_several",
    "scale_uint8",
    "utility",
]
