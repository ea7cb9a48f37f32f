"""A training loop for any ``apply`` and any Optax optimizer, with many steps per compiled call.

Arrays of data are on the device in their own dtype, such as uint8 for images, and are converted
batch by batch. Their first axis runs over samples: inputs are ``[n, ...]``. Labels are ``[n]`` for
classes, and otherwise in the form that the loss takes.

**Trained leaves** are all floating-point and complex leaves of ``variables``. Leaves of other
dtypes stay unchanged. In a Flax mapping ``{"params": ..., "batch_stats": ...}`` only the leaves
under ``"params"`` are trained, and the other collections stay: ``apply`` only returns outputs, so
running statistics keep their values. The optimizer sees the tree of ``variables`` with None in
place of each leaf that is not trained. To keep more leaves unchanged, close over them in ``apply``,
or assign ``optax.set_to_zero()`` to them in ``optax.multi_transform``.

**Data larger than the memory** are passed as a source of samples instead of arrays: any object with
``len(source)`` and ``source[i]``. An item is a tuple (input, label) of NumPy arrays or numbers,
with the same shapes and dtypes for all ``i``. Grain calls this a random access data source, PyTorch
a map-style dataset. If the source has ``__getitems__``, which maps a list of indices to a list of
tuples, it is called instead, once per batch. Several threads read at the same time. During the
training on one chunk of 64 MiB the next chunk is read, so at most three chunks are in memory.
Samples are shuffled like arrays: each epoch has a new permutation of *all* samples, not one within
a window. So a run gives the same result as with the same data in arrays. A source must be fast at
any index, like array_record files and memory maps. With tensorflow-datasets (but without TensorFlow
and without a copy in memory)::

    records = tfds.data_source("mnist", split="train")
    source = grain.MapDataset.source(records).map(lambda r: (r["image"], r["label"]))
    run = training.fit(apply, variables, tx, source, epochs=10, batch_size=32, key=key)

**Growing between stages.** ``stages=`` replaces ``epochs=`` and gives the length of the training in
each size. Growths are planned before any work. The optimizer's state grows with the network::

    tx = dogwood_jax.growable(optax.adam(1e-3))
    stages = [Stage(epochs=2), Stage(sizes={"hidden": 128}, epochs=14)]
    run = training.fit(apply, variables, tx, data, stages=stages, batch_size=32, key=key)
    training.evaluate(run.apply, run.variables, test)

A deeper model, or a module with sizes in its configuration, needs its own function:
``Stage(target=deep.init(key, x), apply=deep.apply, epochs=14)``. In place of ``epochs``, ``steps``
counts batches, and ``seconds`` ends a stage by the clock. If a stage ends within a pass over the
data, the next stage continues this pass, so each sample is seen once per pass. Another call of
``fit`` begins a new pass. ``dogwood_jax.cost(widths, stages=stages)`` counts FLOPs beforehand.

**Learning from a larger network.** ``distill`` is ``fit`` with a teacher. A network that has lost
units or layers heals by learning the large network's predictions; see the guide "Shrink, then
heal".

**Several models at once**, for example from different seeds: stack their variables along a new
first axis and sum their losses, so that each model has the same gradient as alone. All models see
the same batches. The optimizer must update each weight independently, like Adam and SGD, and unlike
``clip_by_global_norm``. To stack models of several widths, first grow the narrower ones with
``strategies.zeros()``: if activations are zero at zero, units whose weights are all zero stay so.
::

    several = jax.vmap(model.init, (0, None))(jax.random.split(key, 8), inputs)

    def apply(several, inputs):  # outputs [8, batch, classes]
        # Without the copies, by (0, None), a CPU would transpose all kernels at each step.
        return jax.vmap(model.apply)(several, jnp.broadcast_to(inputs, (8, *inputs.shape)))

    def loss(outputs, labels):
        labels = jnp.broadcast_to(labels, outputs.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).sum(0)

On several devices, each device can train some of the models: put variables on a mesh with
``PartitionSpec("models")``, and pass ``sharding=NamedSharding(mesh, PartitionSpec())``, because all
models get the whole batch.

**On a CPU**, XLA splits each large operation over one thread per core, and the next operation waits
for the slowest thread. With small layers this takes more CPU time than a single thread. Next to
other busy programs it may take twice the time, because operations wait for threads that the system
has suspended. The environment variable ``NPROC=1``, read when JAX starts, gives one thread, and so
does ``taskset -c 0``. This helps if programs share the cores, but not on an idle machine.
``JAX_COMPILATION_CACHE_DIR`` names a folder in which JAX keeps compiled programs for later
processes. With ``JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0`` it also keeps programs that compile
in less than a second, such as the epoch of a small model.

**On several devices**, ``sharding`` determines how each batch is split. ``variables`` stay on their
devices, split as the caller has split them. With ``mesh = jax.make_mesh((4, 2), ("data",
"model"))`` and ``sharding=NamedSharding(mesh, PartitionSpec("data"))``,

- data parallel: pass variables as ``init`` returns them; they are copied to every device;
- tensor parallel: ``jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, "model")))``;
- FSDP: ``PartitionSpec("data")``; each device holds a part and gathers the other parts in turn.

The optimizer's state is split like the variables. Results do not depend on the devices, except for
rounding. Arrays of data are copied to every device, unless the caller has put them on the mesh;
then they stay split. With a source, each device only gets its part of each batch. ``apply`` needs
no code for the mesh: within the loop all mesh axes are automatic, whichever types they have
outside.

**On several hosts**, after ``jax.distributed.initialize()``, each process makes the same call with
the same arguments: a mesh of all ``jax.devices()``, the same key, and the same variables. Variables
are either whole in each process, or global arrays (from an ``init`` jitted with ``out_shardings``,
or from Orbax). Data may be a source: each process only reads the samples of its own devices. Or
they are arrays, either the same in each process, or global arrays from
``jax.make_array_from_process_local_data``. The history is the same in every process. ``seconds`` is
refused on several hosts, because clocks differ.
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
