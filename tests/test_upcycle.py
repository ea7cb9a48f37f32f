"""``upcycle``: more experts, experts in place of an MLP, and what stays exact."""

import dataclasses

import jax
import jax.numpy as jnp
import networks_experts as net
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiers import long

import dogwood_jax as dw
from dogwood_jax._plan import shown
from dogwood_jax._plan.experts import copied

TOKENS = jnp.arange(30).reshape(3, 10) % net.VOCAB


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def shapes(*args, **kwargs):
    return jax.eval_shape(lambda: net.params(*args, **kwargs))


def moved(old, variables, new, grown):
    """Returns by how much outputs moved, relative to the largest one."""
    before, after = old(variables, TOKENS), new(grown, TOKENS)
    return float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before)))


def is_preserving(growth):
    return all(change.strategy.preserving for change in growth.changes)


def keeps_as_text(growth):
    return dw.from_json(dw.to_json(growth)) == growth and hash(growth) and "note" in str(growth)


def loss_of(apply):
    def loss(variables, tokens):
        logits = apply(variables, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return loss


# More experts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dispatch"),
    [
        ("sigmoid", "einsum"),
        long("softmax, top-k", "ragged_dot"),
        long("softmax, mask, renormalized", "one by one"),
    ],
)
def test_twice_the_experts(kind, dispatch):
    variables, old = net.params(3), net.network(kind, dispatch)
    widths, target = dw.trace(old, variables, TOKENS), shapes(6)
    new = net.network(kind, dispatch, chosen=4)
    growth = dw.upcycle(widths, target=target, target_apply=new)
    assert moved(old, variables, new, dw.grow(variables, growth)) < 1e-12
    assert is_preserving(growth)
    assert "outputs stay because the larger model chooses 4 of 6 experts" in growth.notes[0]
    assert keeps_as_text(growth)
    planned = dw.plan(widths, target=target, target_apply=new)
    assert planned.changes == growth.changes and planned.notes == growth.notes


@pytest.mark.long
def test_as_many_experts_chosen_as_before():
    """The copies of one expert take both places."""
    variables, old = net.params(3), net.network("top-k, softmax", "ragged_dot")
    widths, target = dw.trace(old, variables, TOKENS), shapes(6)
    growth = dw.upcycle(widths, target=target, target_apply=old)
    assert moved(old, variables, old, dw.grow(variables, growth)) > 1e-3
    assert not is_preserving(growth)
    assert "outputs change, because the larger model chooses 2 of 6" in growth.notes[0]
    with pytest.raises(ValueError, match="dw.upcycle copies"):
        dw.plan(widths, target=target, target_apply=old)


@pytest.mark.parametrize(
    ("kind", "dispatch", "factor"),
    [
        ("softmax, top-k", "einsum", 2),
        long("sigmoid", "ragged_dot", 1),
    ],
)
def test_one_expert_is_chosen_as_before(kind, dispatch, factor):
    variables, apply = net.params(3), net.network(kind, dispatch, chosen=1)
    widths = dw.trace(apply, variables, TOKENS)
    growth = dw.plan(widths, target=shapes(6), target_apply=apply)
    grown = dw.grow(variables, growth)
    assert moved(apply, variables, apply, grown) < 1e-12
    assert is_preserving(growth) and "chooses one of 6 experts" in growth.notes[0]
    old, new = variables["moe"]["down"], grown["moe"]["down"]
    np.testing.assert_array_equal(new, factor * jnp.concatenate([old, old]))


@pytest.mark.parametrize("dispatch", ["einsum", "ragged_dot"])
@pytest.mark.long
def test_the_router_tells_the_arrays_of_its_experts(dispatch):
    variables, old = net.params(3), net.network("sigmoid", dispatch)
    growth = dw.upcycle(dw.trace(old, variables, TOKENS), {("moe/router/kernel", 1): 9})
    assert "outputs stay if the larger model chooses 6 of 9" in growth.notes[0]
    grown = jax.jit(dw.grow, static_argnames="growth")(variables, growth=growth)
    new = net.network("sigmoid", dispatch, chosen=6)
    assert moved(old, variables, new, grown) < 1e-12


@pytest.mark.long
def test_bfloat16():
    variables = net.params(4, dtype=jnp.bfloat16)
    old, new = (net.network("top-k, softmax", "ragged_dot", chosen) for chosen in (2, 4))
    growth = dw.upcycle(dw.trace(old, variables, TOKENS), target=shapes(8), target_apply=new)
    grown = dw.grow(variables, growth)
    assert is_preserving(growth) and grown["moe"]["up"].dtype == jnp.bfloat16
    assert moved(old, variables, new, grown) < 0.02


@pytest.mark.long
def test_layers_in_a_scan():
    def network(chosen):
        def apply(variables, x):
            def block(x, layer):
                return x + net.moe(layer, x, "softmax, top-k", "einsum", chosen), None

            return jax.lax.scan(block, x, variables)[0]

        return apply

    def stacked(experts):
        layers = [net.params(experts, seed=seed)["moe"] for seed in (0, 1)]
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)

    x = jax.random.normal(jax.random.key(3), (9, net.STREAM))
    variables, old, new = stacked(3), network(2), network(4)
    growth = dw.upcycle(dw.trace(old, variables, x), target=stacked(6), target_apply=new)
    assert is_preserving(growth)
    np.testing.assert_allclose(
        new(dw.grow(variables, growth), x), old(variables, x), rtol=1e-12, atol=1e-12
    )


def test_more_copies_of_the_more_useful_experts():
    variables, apply = net.params(3), net.network("top-k, softmax")
    gradient = jax.jit(jax.grad(loss_of(apply)))(variables, TOKENS)
    useful = jax.tree.map(jnp.multiply, variables, gradient)
    useful["moe"]["up"] = useful["moe"]["up"].at[1].set(-100.0)
    widths = dw.trace(apply, variables, TOKENS)
    growth = dw.upcycle(widths, {"moe/router": 5}, usefulness=useful)
    assert [change.sources for change in growth.changes] == [(0, 1, 2, 1, 1)] * 2
    assert "outputs change, because some experts get more copies" in growth.notes[0]
    assert not is_preserving(growth)
    grown = dw.grow(variables, growth)
    np.testing.assert_array_equal(grown["moe"]["up"][4], variables["moe"]["up"][1])


@pytest.mark.long
def test_noise_is_on_copies_alone():
    variables, apply = net.params(3), net.network("top-k, softmax")
    widths = dw.trace(apply, variables, TOKENS)
    growth = dw.upcycle(widths, {"moe/router": 6}, noise=0.1)
    grown = dw.grow(variables, growth, key=jax.random.key(1))["moe"]
    np.testing.assert_array_equal(grown["down"][:3], variables["moe"]["down"])
    assert 0.05 < jnp.std(grown["down"][3:] - variables["moe"]["down"]) * 12**0.5 < 0.2
    assert "outputs change, because copies carry noise" in growth.notes[0]
    assert not is_preserving(growth)


def test_another_number_in_the_larger_model_is_seen():
    variables, old = net.params(3), net.network("top-k, softmax")
    widths = dw.trace(old, variables, TOKENS)
    new = net.network("top-k, softmax", chosen=4, scale=0.5)
    growth = dw.upcycle(widths, target=shapes(6), target_apply=new)
    assert growth.notes[-1].startswith("outputs change: its output[0, 0, 0] becomes")
    assert not is_preserving(growth)


def test_another_function_in_the_larger_model_is_seen():
    variables, old = net.params(0, mlp=True), net.network(function=jnp.tanh)
    widths = dw.trace(old, variables, TOKENS)
    growth = dw.upcycle(widths, target=shapes(4), target_apply=net.network("top-k, softmax"))
    assert growth.notes[-1].startswith("outputs change: its output[0, 0, 0] becomes")


def test_gates_that_depend_on_their_place():
    def apply(variables, x):
        gates, experts = jax.lax.top_k(x @ variables["router"], 2)
        gates = jnp.cumsum(gates, -1)
        mask = jax.nn.one_hot(experts, variables["up"].shape[0], dtype=x.dtype)
        return jnp.einsum("tk,tke,td,edf->tf", gates, mask, x, variables["up"])

    x = jnp.ones((4, 3))
    widths = dw.trace(apply, {"router": jnp.ones((3, 4)), "up": jnp.ones((4, 3, 2))}, x)
    growth = dw.upcycle(widths, {"router": 8})
    assert "the larger model must choose 4 of 8 experts instead of 2 of 4" in growth.notes[0]
    assert growth.notes[1].startswith("outputs change: its output[0, 0] becomes")
    assert not is_preserving(growth)


def test_equal_logits_are_said_where_experts_have_biases():
    """Of all growths that are tried, the one is planned that is right for most samples."""

    def apply(variables, x):
        gates, which = jax.lax.top_k(jax.nn.sigmoid(x @ variables["router"]), 2)
        outputs = jnp.einsum("td,edf->tef", x, variables["kernel"]) + variables["bias"][None]
        mask = jax.nn.one_hot(which, outputs.shape[1], dtype=x.dtype)
        return jnp.einsum("tk,tke,tef->tf", gates, mask, outputs)

    variables = {
        "router": jnp.ones((3, 4)),
        "kernel": jnp.ones((4, 3, 2)),
        "bias": jnp.ones((4, 2)),
    }
    widths = dw.trace(apply, variables, jnp.ones((5, 3)))
    growth = dw.upcycle(widths, {"router": 8})
    divided = (("kernel", -1.0), ("bias", -1.0))
    assert growth.change["router"].recipe.copies == divided and not is_preserving(growth)
    assert "for inputs with a row of zeros" in growth.notes[-1]
    sizes = {"router": 8, widths.of("kernel", 0).name: 8}
    with pytest.raises(ValueError, match=r"dw.upcycle copies(.|\n)*for inputs with a row of zeros"):
        dw.plan(widths, sizes)


# By plan ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_plan_copies_experts_where_outputs_stay():
    variables, old, new = net.params(3), net.network("sigmoid"), net.network("sigmoid", chosen=4)
    widths = dw.trace(old, variables, TOKENS)
    names = [widths.of("moe/router/kernel", 1).name, widths.of("moe/up", 0).name]
    for growth in (
        dw.plan(widths, dict.fromkeys(names, 6)),
        dw.plan(widths, target=shapes(6)),
        dw.plan(widths, target=shapes(6), target_apply=new),
    ):
        assert moved(old, variables, new, dw.grow(variables, growth)) < 1e-12
        assert "the larger model chooses 4 of 6 experts instead of 2 of 3" in growth.notes[0]
    with pytest.raises(ValueError, match="chooses 2 of 6 experts, .*\n  dw.upcycle copies experts"):
        dw.plan(widths, target=shapes(6), target_apply=old)
    with pytest.raises(ValueError, match="some experts get more copies"):
        dw.plan(widths, dict.fromkeys(names, 5))
    with pytest.raises(ValueError, match="its experts must grow with it, .*; dw.upcycle plans"):
        dw.plan(widths, {names[0]: 6})


def test_all_copies_are_chosen_before_one_of_them_is():
    """Outputs stay in both ways. By sizes, the first is planned."""
    variables, old = net.params(3), net.network("sigmoid", chosen=1)
    widths = dw.trace(old, variables, TOKENS)
    names = [widths.of("moe/router/kernel", 1).name, widths.of("moe/up", 0).name]
    growth = dw.plan(widths, dict.fromkeys(names, 6))
    assert "outputs stay if the larger model chooses 2 of 6 experts" in growth.notes[0]
    new = net.network("sigmoid", chosen=2)
    assert moved(old, variables, new, dw.grow(variables, growth)) < 1e-12


@pytest.mark.parametrize("dispatch", ["einsum", "ragged_dot with a scale"])
@pytest.mark.long
def test_more_and_wider_experts_in_one_plan(dispatch, monkeypatch):
    variables = net.params(3, mlp=True)
    has_scale = dispatch.endswith("scale")  # the program cuts what it counts along experts
    dispatch = dispatch.removesuffix(" with a scale")
    if has_scale:
        variables["moe"]["scale"] = jnp.array([0.5, 2.0, 3.0])
    old, new = (net.network("sigmoid", dispatch, chosen=n) for n in (2, 4))
    widths, before = dw.trace(old, variables, TOKENS), old(variables, TOKENS)
    with monkeypatch.context() as patch:
        patch.setattr(net, "HIDDEN", 17)
        patch.setattr(net, "STREAM", 11)
        target = shapes(6, mlp=True)
    if has_scale:
        target["moe"]["scale"] = jax.ShapeDtypeStruct((6,), float)
    growth = dw.plan(widths, target=target, target_apply=new)
    grown = dw.grow(variables, growth, key=jax.random.key(1))
    np.testing.assert_allclose(new(grown, TOKENS), before, rtol=1e-12, atol=1e-12)
    if not has_scale:
        assert dw.plan(widths, target=target).changes == growth.changes
    # What experts or other widths compute must stay, and no other router may choose more.
    for other in (
        net.network("sigmoid", dispatch, chosen=4, scale=2.0),
        net.network("sigmoid", dispatch, chosen=4, function=jnp.tanh),
        net.network("softmax, top-k", dispatch, chosen=4),
    ):
        with pytest.raises(ValueError, match="the larger model (computes something else|has)"):
            dw.plan(widths, target=target, target_apply=other)
    with pytest.raises(ValueError, match="chooses 2 of 6 experts, .*\n  dw.upcycle copies experts"):
        dw.plan(widths, target=target, target_apply=old)


# By evaluation ------------------------------------------------------------------------------------


def checked(growth):
    """Returns what the last line of a growth says."""
    return str(growth).splitlines()[-1]


@pytest.mark.parametrize("kind", ["sigmoid", long("softmax, top-k")])
@pytest.mark.parametrize("dispatch", net.DISPATCHES)
def test_more_experts_are_checked_without_a_larger_function(kind, dispatch):
    """The network's own function chooses 2 of 6; it is evaluated with 4."""
    widths = dw.trace(net.network(kind, dispatch), net.params(3), TOKENS)
    more = {"target": shapes(6)} if dispatch == "one by one" else {"experts": {"moe/router": 6}}
    growth = dw.upcycle(widths, **more)
    assert checked(growth).startswith("checked: equal to rounding in ")
    chosen, *copied = growth.notes
    assert chosen == (
        "moe/router: outputs stay if the larger model chooses 4 of 6 experts instead of 2 of 3"
    )
    # Copies that are chosen together with their experts get the same gradients.
    assert [note.startswith("new units of moe/") for note in copied] == [True]


@pytest.mark.parametrize("knows_its_sizes", [False, True])
def test_many_experts_are_checked_in_a_reduced_model(knows_its_sizes):
    """Of 64 experts 8 are chosen, by rows of tokens that integers find: ``order // chosen``."""
    array = jax.ShapeDtypeStruct

    def apply(params, x):
        count, chosen = params["router"].shape[1], 8
        assert not knows_its_sizes or count == 64
        gates, which = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), chosen)
        flat = which.reshape(-1)
        order = jnp.argsort(flat)
        rows = jnp.einsum("rd,rdf->rf", x[order // chosen], params["up"][flat[order]])
        rows = rows[jnp.argsort(order)].reshape(-1, chosen, rows.shape[-1])
        return jnp.einsum("tkd,tk->td", rows, gates)

    params = {"router": array((48, 64), float), "up": array((64, 48, 96), float)}
    growth = dw.upcycle(dw.trace(apply, params, array((128, 48), float)), {"router": 128})
    assert checked(growth).endswith("sizes 64 -> 4, 128 -> 8")
    assert "chooses 16 of 128" in growth.notes[0] and is_preserving(growth)


@pytest.mark.long
def test_experts_in_many_layers_are_checked():
    """Large weights overflow there. Weights of 0 and 1 would not, but make equal logits."""

    def network(chosen):
        def apply(variables, tokens):
            x = variables["embed"][tokens]
            for layer in variables["layers"]:
                x = x + net.moe(layer, x, "top-k, softmax", "einsum", chosen)
            return x @ variables["head"]

        return apply

    def deep(count):
        moe = shapes(count)
        return {"layers": [moe.pop("moe")] * 10, **moe}

    widths = dw.trace(network(2), deep(4), jax.ShapeDtypeStruct((32,), int))
    growth = dw.plan(widths, target=deep(8), target_apply=network(4))
    assert is_preserving(growth) and growth.evidence.samples


def _copies_other_experts(patch):
    """Makes the router copy other experts than the stacks."""
    changes_of = copied.Copied.changes.fget

    def changes(self):
        made = changes_of(self)
        name = self.experts.router
        return {**made, name: dataclasses.replace(made[name], sources=(0, 1, 2, 1, 2, 0))}

    patch.setattr(copied.Copied, "changes", property(changes))


BROKEN = {
    "the router copies other experts": _copies_other_experts,
    "outputs are not divided": lambda patch: patch.setattr(
        copied, "factors_of_outputs", lambda *_: []
    ),
    "as many are chosen as before": lambda patch: patch.setattr(
        shown, "choices_of", lambda *_, **__: [()]
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_recipe_is_refused(what, monkeypatch):
    widths = dw.trace(net.network("sigmoid"), net.params(3), TOKENS)
    names = [widths.of("moe/router/kernel", 1).name, widths.of("moe/up", 0).name]
    BROKEN[what](monkeypatch)
    with pytest.raises(ValueError, match=r"dw.upcycle copies(.|\n)*its output\[0, 0, 0\] becomes"):
        dw.plan(widths, dict.fromkeys(names, 6))
    growth = dw.upcycle(widths, {names[0]: 6})
    assert not is_preserving(growth) and growth.evidence is None
    assert growth.notes[-1].startswith("outputs change: its output[0, 0, 0] becomes")


@pytest.mark.long
def test_experts_that_cannot_be_evaluated():
    """The program flattens the one choice, and does not show where there would be two."""
    widths = dw.trace(net.network("softmax, top-k", "ragged_dot", 1), net.params(3), TOKENS)
    growth = dw.upcycle(widths, {"moe/router": 6})
    assert "reshape of (30, 2) to (30,)" in growth.evidence.why_not
    assert str(growth).startswith("not checked: the programs cannot be evaluated")
    assert "the larger model must choose 2 of 6" in growth.notes[0] and not is_preserving(growth)
    # As ``plan`` finds, outputs stay with one of six, too: the network's own function shows it.
    names = [widths.of("moe/router/kernel", 1).name, widths.of("moe/up", 0).name]
    planned = dw.plan(widths, dict.fromkeys(names, 6))
    assert "chooses one of 6 experts" in planned.notes[0] and planned.evidence.samples


@pytest.mark.long
def test_more_copies_of_useful_experts_are_not_checked_as_even_ones():
    """A reduced model of fewer experts would have as many copies of each."""
    old, new = (net.network("softmax, top-k", chosen=chosen) for chosen in (2, 4))
    variables = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), net.params(32))
    useful = jax.tree.map(lambda a: jnp.zeros(a.shape), variables)
    useful["moe"]["up"] = useful["moe"]["up"].at[1].set(1.0)
    tokens = jax.ShapeDtypeStruct((16, 64), int)
    more = {"target": shapes(64), "target_apply": new, "usefulness": useful}
    growth = dw.upcycle(dw.trace(old, variables, tokens), **more)
    assert not is_preserving(growth) and growth.evidence is None


# Experts in place of an MLP -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax, top-k, renormalized", "sigmoid"])
def test_experts_in_place_of_an_mlp(kind):
    variables, old, new = net.params(0, mlp=True), net.network(), net.network(kind)
    growth = dw.upcycle(dw.trace(old, variables, TOKENS), target=shapes(4), target_apply=new)
    grown = dw.grow(variables, growth, key=jax.random.key(1))
    assert float(jnp.std(grown["moe"]["router"]["kernel"])) > 0.1
    distance = moved(old, variables, new, grown)
    if net.GATES[kind]:
        assert distance < 1e-12
        assert "outputs stay, because all experts are alike" in growth.notes[0]
    else:
        assert distance > 1e-3
        assert "stay only if the gates of each token sum to one" in growth.notes[0]
        assert growth.notes[1].startswith("outputs change: its output[0, 0, 0] becomes")
    assert keeps_as_text(growth)
    own = net.params(4, seed=2)
    fresh = dw.grow(variables, growth, fresh=own)
    np.testing.assert_array_equal(fresh["moe"]["router"]["kernel"], own["moe"]["router"]["kernel"])
    np.testing.assert_array_equal(fresh["moe"]["up"], grown["moe"]["up"])


@pytest.mark.parametrize(
    ("kind", "dispatch"),
    [
        ("sigmoid", "einsum"),
        long("softmax, top-k", "ragged_dot with a scale"),
    ],
)
def test_experts_beside_an_mlp_begin_with_zero(kind, dispatch):
    variables, old = net.params(0, mlp=True), net.network()
    new, target = net.network(kind, dispatch.removesuffix(" with a scale")), shapes(4, mlp=True)
    if dispatch.endswith("scale"):
        target["moe"]["scale"] = jax.ShapeDtypeStruct((4,), float)
    growth = dw.upcycle(dw.trace(old, variables, TOKENS), target=target, target_apply=new)
    grown = dw.grow(variables, growth, key=jax.random.key(1))
    assert moved(old, variables, new, grown) < 1e-12
    assert growth.notes == (
        "moe/router: outputs stay, because the outputs of new experts are zero",
    )
    gradient = jax.jit(jax.grad(loss_of(new)))(grown, TOKENS)["moe"]
    assert jnp.abs(gradient["down"]).max() > 0 and not grown["moe"]["down"].any()
    assert grown["moe"].get("scale", jnp.ones(())).all()  # else neither would ever learn


@pytest.mark.long
def test_hidden_units_drawn_anew():
    variables, old, new = net.params(0, mlp=True), net.network(), net.network("top-k, softmax")
    widths = dw.trace(old, variables, TOKENS)
    growth = dw.upcycle(widths, target=shapes(4), target_apply=new, anew=0.5)
    assert "outputs change, because 0.5 of the hidden units are drawn anew" in growth.notes[0]
    grown, mlp = dw.grow(variables, growth, key=jax.random.key(1))["moe"], variables["mlp"]
    changed = {name: grown[name] != mlp[name]["kernel"][None] for name in ("gate", "up", "down")}
    is_new = growth.is_new(shapes(4))["moe"]
    jax.tree.map(np.testing.assert_array_equal, {name: is_new[name] for name in changed}, changed)
    assert all(map(np.all, jax.tree.leaves(is_new["router"])))
    units = changed["up"].all(1)
    np.testing.assert_array_equal(units, changed["up"].any(1))
    np.testing.assert_array_equal(units, changed["gate"].all(1))
    np.testing.assert_array_equal(units, changed["down"].all(2))
    assert units.sum(1).tolist() == [6] * 4 and units.sum(0).tolist() == [2] * 12
    with pytest.raises(ValueError, match="free, so pass key="):
        dw.grow(variables, growth)


def test_rename_where_names_do_not_tell():
    names = {"gate": "w1", "up": "w3", "down": "w2"}

    def new(variables, tokens):
        moe = {old: variables["moe"][name] for old, name in names.items()}
        moe["router"] = variables["moe"]["router"]
        return net.network("top-k, softmax")({**variables, "moe": moe}, tokens)

    target = shapes(4)
    target["moe"] = {names.get(name, name): array for name, array in target["moe"].items()}
    variables, old = net.params(0, mlp=True), net.network()
    widths = dw.trace(old, variables, TOKENS)
    with pytest.raises(ValueError, match="mlp/gate/kernel: names do not show which of"):
        dw.upcycle(widths, target=target, target_apply=new)
    rename = {f"mlp/{name}": f"moe/{name_there}" for name, name_there in names.items()}
    growth = dw.upcycle(widths, target=target, target_apply=new, rename=rename)
    grown = dw.grow(variables, growth, key=jax.random.key(1))
    assert moved(old, variables, new, grown) < 1e-12


def test_repeated_arrays_are_divided_along_the_same_axes():
    mesh = Mesh(np.array(jax.devices()[:4]), "model")
    variables, old = net.params(0, mlp=True), net.network()
    new, widths = net.network("top-k, softmax"), dw.trace(old, variables, TOKENS)
    growth = dw.upcycle(widths, target=shapes(4), target_apply=new)
    specs = {"gate": P(None, "model"), "up": P(None, "model"), "down": P("model")}
    shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), variables)
    shardings["mlp"] = {name: {"kernel": NamedSharding(mesh, spec)} for name, spec in specs.items()}
    there = growth.shardings(shardings)["moe"]
    assert there["up"].spec == P(None, None, "model") and there["down"].spec == P(None, "model")
    grown = dw.grow(jax.device_put(variables, shardings), growth, key=jax.random.key(1))
    assert grown["moe"]["up"].sharding.is_equivalent_to(there["up"], 3)
    whole = dw.grow(variables, growth, key=jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, grown, whole)
    assert growth.rates(shapes(4))["moe"]["up"] == 1.0


# The optimizer's state ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sigmoid", "softmax, top-k"])
@pytest.mark.long
def test_the_state_is_that_of_the_larger_network(kind):
    """An average of gradients that only holds the last one becomes the larger network's."""
    variables, tx = net.params(3), optax.trace(0.0)
    old, new = (net.network(kind, "ragged_dot", chosen) for chosen in (2, 4))
    gradient = jax.jit(jax.grad(loss_of(old)))(variables, TOKENS)
    _, state = tx.update(gradient, tx.init(variables))
    growth = dw.upcycle(dw.trace(old, variables, TOKENS), target=shapes(6), target_apply=new)
    wanted = jax.jit(jax.grad(loss_of(new)))(dw.grow(variables, growth), TOKENS)
    found = dw.grow_opt_state(state, growth, tx).trace
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), found, wanted)


def test_experts_share_the_gradient_of_an_mlp():
    variables, tx = net.params(0, mlp=True), optax.chain(optax.trace(0.0), optax.adam(1e-3))
    old, new = net.network(), net.network("top-k, softmax", "ragged_dot")
    gradient = jax.jit(jax.grad(loss_of(old)))(variables, TOKENS)
    _, state = tx.update(gradient, tx.init(variables))
    growth = dw.upcycle(dw.trace(old, variables, TOKENS), target=shapes(4), target_apply=new)
    grown = dw.grow(variables, growth, key=jax.random.key(1))
    wanted = jax.jit(jax.grad(loss_of(new)))(grown, TOKENS)["moe"]
    with pytest.warns(UserWarning, match="one step count"):
        momentum, (adam, _) = dw.grow_opt_state(state, growth, tx)
    for name in ("gate", "up", "down"):
        found = momentum.trace["moe"][name]
        np.testing.assert_allclose(found.sum(0), wanted[name].sum(0), atol=1e-13)
        old_nu = state[1][0].nu["mlp"][name]["kernel"]
        np.testing.assert_allclose(adam.nu["moe"][name][2], old_nu / 16, rtol=1e-12)
    assert not momentum.trace["moe"]["router"]["kernel"].any()


def test_a_state_by_axes_is_refused_for_new_experts():
    variables, old, tx = net.params(0, mlp=True), net.network(), optax.sm3(1e-3)
    widths = dw.trace(old, variables, TOKENS)
    growth = dw.upcycle(widths, target=shapes(4), target_apply=net.network("sigmoid"))
    with pytest.raises(ValueError, match="start anew with tx.init"):
        dw.grow_opt_state(tx.init(variables), growth, tx)


@pytest.mark.long
def test_training_goes_on_without_a_jump():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 10, 500)
    tx = dw.growable(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)))

    def trained(apply, variables, state, steps):
        loss = loss_of(apply)

        @jax.jit
        def step(variables, state):
            value, gradient = jax.value_and_grad(loss)(variables, TOKENS)
            updates, state = tx.update(gradient, state, variables)
            return optax.apply_updates(variables, updates), state, value

        losses = []
        for _ in range(steps):
            variables, state, value = step(variables, state)
            losses.append(float(value))
        return variables, state, losses

    kind = "softmax, top-k, renormalized"
    variables = net.params(3)
    old, new = net.network(kind, chosen=2), net.network(kind, chosen=4)
    variables, state, _ = trained(old, variables, tx.init(variables), 40)
    growth = dw.upcycle(dw.trace(old, variables, TOKENS), target=shapes(6), target_apply=new)
    grown = dw.grow(variables, growth, key=jax.random.key(1))
    *_, before = trained(old, variables, state, 12)
    grown, state, after = trained(new, grown, dw.grow_opt_state(state, growth, tx), 12)
    assert after[0] == pytest.approx(before[0], rel=1e-12)
    np.testing.assert_allclose(after, before, rtol=0.02)
    assert after[-1] < 0.95 * after[0]
    again = dw.grow_opt_state(
        state, dw.upcycle(dw.trace(new, grown, TOKENS), {("moe/router/kernel", 1): 12}), tx
    )
    assert jax.tree.leaves(again)


# Refusals -----------------------------------------------------------------------------------------


def test_refusals():
    variables, apply = net.params(3), net.network("top-k, softmax", "one by one")
    widths = dw.trace(apply, variables, TOKENS)
    with pytest.raises(ValueError, match="does not show which arrays hold its experts"):
        dw.upcycle(widths, {"moe/router": 6})
    with pytest.raises(ValueError, match="head: no router that grows chooses along this width"):
        dw.upcycle(widths, {"head": 20})
    with pytest.raises(ValueError, match="2 experts are fewer than today's 3"):
        dw.upcycle(widths, {"moe/router": 2})
    with pytest.raises(ValueError, match="as many experts as before"):
        dw.upcycle(widths, target=variables)
    with pytest.raises(ValueError, match="either experts"):
        dw.upcycle(widths)
    with pytest.raises(ValueError, match="traced in this process"):
        dw.upcycle(dw.from_json(dw.to_json(widths)), {"moe/router": 6})
    with pytest.raises(ValueError, match="are for experts that are copies of an MLP"):
        dw.upcycle(widths, target=shapes(6), anew=0.5)
    # The stream has as many units as there are experts, and doubles, too.
    even, eight = net.network("top-k, softmax"), net.params(8)
    wide = jax.tree.map(lambda a: jnp.ones([16 if n == 8 else n for n in a.shape]), eight)
    with pytest.raises(
        ValueError, match="embed: no router that grows (.|\n)* other widths grow by"
    ):
        dw.upcycle(dw.trace(even, eight, TOKENS), target=wide)
    dense = dw.trace(net.network(), net.params(0, mlp=True), TOKENS)
    with pytest.raises(ValueError, match="pass target_apply="):
        dw.upcycle(dense, target=shapes(4))
    with pytest.raises(ValueError, match="no router"):
        dw.upcycle(dense, target=net.params(0), target_apply=net.network())
    target = shapes(4) | {"other": shapes(4)["head"]}
    match = (
        "other: only in the target, and no array of a router(.|\n)*more layers, too: first dw.plan"
    )
    with pytest.raises(ValueError, match=match):
        dw.upcycle(dense, target=target, target_apply=net.network("sigmoid"))


def numbered(where):
    """A mixture that computes with more than its gates and experts."""

    def network(experts, chosen):
        def apply(params, x):
            scores = jax.nn.sigmoid(x @ params["router"])
            places = jnp.arange(experts, dtype=x.dtype)[None]
            _, which = jax.lax.top_k(scores + (places / 9 if where == "choice" else 0), chosen)
            gates = jnp.take_along_axis(scores, which, -1)
            gates = gates / gates.sum(-1, keepdims=True)
            if where == "rank":
                gates = gates * jnp.linspace(1.0, 0.5, chosen)[None]
            mask = (jax.nn.one_hot(which, experts) * gates[..., None]).sum(-2)
            outputs = jnp.einsum("td,edf->tef", x, params["experts"])
            if where == "outputs":
                outputs = outputs * (1 + places[..., None])
            if where == "sum":
                outputs = outputs * params["experts"].sum()
            return jnp.einsum("te,tef->tf", mask, outputs)

        return apply

    return network


@pytest.mark.parametrize("where", ["nowhere", "choice", "rank", "outputs", "sum"])
def test_numbers_for_each_expert_are_no_copies(where):
    params = lambda n: {"router": jnp.ones((3, n)), "experts": jnp.ones((n, 3, 2))}  # noqa: E731
    network = numbered(where)
    widths = dw.trace(network(4, 2), params(4), jnp.ones((5, 3)))
    larger = {"target": params(8), "target_apply": network(8, 4)}
    if where == "nowhere":
        assert is_preserving(dw.plan(widths, **larger))
        return
    with pytest.raises(ValueError, match="computes something else"):
        dw.plan(widths, **larger)
    assert dw.upcycle(widths, **larger).notes[-1].startswith("outputs change: its output")


def test_joined_axes_are_not_taken_for_experts():
    def apply(params, x):
        first, second = jnp.split(x @ params["both"], 2, axis=-1)
        return (jnp.tanh(first) * second) @ params["out"]

    def params(width):
        return {"both": jnp.ones((3, 2 * width)), "out": jnp.ones((width, 2))}

    widths = dw.trace(apply, params(4), jnp.ones((5, 3)))
    assert dw.plan(widths, target=params(6), target_apply=apply).sizes == {"both": 6}
    with pytest.raises(ValueError, match="no router that grows"):
        dw.upcycle(widths, target=params(6), target_apply=apply)


@pytest.mark.long
def test_layers_with_gates_of_several_kinds():
    """Softmax divides gates among copies, and sigmoids do not: their outputs are divided."""

    def network(chosen):
        def apply(params, tokens):
            x = params["embed"][tokens.reshape(-1)]
            for kind, name in (("softmax, top-k", "first"), ("sigmoid", "second")):
                x = x + net.moe(params[name], x, kind, "einsum", chosen)
            return x @ params["head"]

        return apply

    one, other = net.params(3), net.params(3, seed=1)
    params = {"embed": one["embed"], "head": one["head"], "first": one["moe"]}
    params["second"] = other["moe"]
    widths = dw.trace(network(2), params, TOKENS)
    routers = [widths.of(f"{name}/router/kernel", 1).name for name in ("first", "second")]
    growth = dw.upcycle(widths, dict.fromkeys(routers, 6))
    assert all(change.strategy.exact for change in growth.changes)
    grown = dw.grow(params, growth)
    np.testing.assert_allclose(network(4)(grown, TOKENS), network(2)(params, TOKENS), 1e-9, 1e-12)


def test_which_copies_keep_outputs_is_not_guessed():
    widths = dw.trace(net.network("sigmoid"), net.params(3), TOKENS)
    sizes = {widths.of("moe/router/kernel", 1).name: 6, widths.of("moe/up", 0).name: 6}
    with pytest.raises(ValueError, match="several ways to copy experts"):
        dw.plan(widths, sizes, check=False)
