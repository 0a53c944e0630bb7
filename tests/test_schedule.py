"""The tape against PyTorch's autograd and its checkpointing, run on the CPU with every storage followed."""

from __future__ import annotations

import pytest

from planner.dtypes import DType
from planner.ledger import Category, Phase
from planner.operations.elementwise import activation, activation_of_result, add, mul, scale, split
from planner.operations.linear import product
from planner.schedule import StopRecomputation, Tape
from planner.tensors import Leaf, Tensor
from tests.live import leaf, live_curve, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")
checkpoints = pytest.importorskip("torch.utils.checkpoint")

BF16, FP32 = DType.BF16, DType.FP32
ROWS, WIDTH = 12, 16


class Block(torch.nn.Module):
    """A small layer in torch and on the tape: two products, a gate, and a tail that saves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.down = torch.nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.up_weight, self.down_weight = leaf(self.up.weight), leaf(self.down.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x
        x = self.up(x)
        x = F.silu(x) * x
        x = self.down(x)
        return (x + residual) * 2

    def on_tape(self, t: Tape, x: Tensor) -> Tensor:
        residual = x
        x = product(t, x, self.up_weight, None, WIDTH, 3 * WIDTH)
        x = mul(t, activation(t, x, "silu"), x)
        x = product(t, x, self.down_weight, None, 3 * WIDTH, WIDTH)
        return scale(t, add(t, x, residual))


@pytest.mark.parametrize("needs_grad", [True, False], ids=["grad", "frozen"])
@pytest.mark.parametrize("reentrant", [True, False, None], ids=["reentrant", "non-reentrant", "none"])
@pytest.mark.parametrize("layers", [1, 3])
def test_layers_under_checkpointing(layers, reentrant, needs_grad):
    """Forward, saved and backward bytes of a few layers: recomputed bytes are freed, and the last save ends a recomputation."""
    if reentrant and not needs_grad:
        pytest.skip("a reentrant checkpoint of an input without a gradient trains nothing, and torch warns so")
    blocks = [Block() for _ in range(layers)]
    x, ours = pair((ROWS, WIDTH), grad=needs_grad)

    def real(x: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            x = block(x) if reentrant is None else checkpoints.checkpoint(block, x, use_reentrant=reentrant)
        return x

    def planned(t: Tape, x: Tensor) -> Tensor:
        for block in blocks:
            if reentrant is None:
                x = block.on_tape(t, x)
            else:
                x = t.checkpoint(lambda x, block=block: block.on_tape(t, x), x, reentrant=reentrant)
        return x

    assert of_torch(real, x) == of_tape(planned, ours)


def test_layers_under_autocast():
    """Each fp32 weight is cast once, whichever layers use it; the copies go when autocast ends, but for those that are saved."""
    block = Block()
    x, ours = pair((ROWS, WIDTH), BF16)

    def real(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return block.down(block.up(block.down(block.up(x))))

    def planned(t: Tape, x: Tensor) -> Tensor:
        for _ in range(2):
            x = product(t, x, block.up_weight, None, WIDTH, 3 * WIDTH)
            x = product(t, x, block.down_weight, None, 3 * WIDTH, WIDTH)
        return x

    assert of_torch(real, x)[:3] == of_tape(planned, ours, autocast=BF16)[:3]


@pytest.mark.parametrize("frozen", [True, False])
def test_autocast_keeps_copies_of_trained_leaves_only(frozen):
    """A frozen weight is cast for every product anew; a trained one is cast once and kept until autocast ends."""
    tape = Tape()
    weight = Tensor(None, 64, FP32, requires_grad=not frozen)
    with tape.autocasting(BF16):
        first = tape.lower(weight)
        with tape.autocasting(BF16):
            second = tape.lower(weight)
        assert (first is second) is not frozen
        del first, second
        inside = live_curve(tape)[-1]

    assert (0 if frozen else 128) == inside
    assert [1 if frozen else 0] == [sum(event == 1 for event in tape.events)]


def test_autocast_leaves_what_it_need_not_cast():
    """Its own dtype, integers, and anything outside it."""
    tape = Tape()
    half, whole = tape.new(8, BF16, "half"), tape.new(8, DType.INT64, "ids")
    single = Tensor(None, 8, FP32)

    assert tape.lower(single) is single
    with tape.autocasting(BF16):
        assert (tape.lower(half), tape.lower(whole)) == (half, whole)
        assert tape.lower(single).dtype is BF16


def test_autocast_treats_a_leaf_on_the_tape_like_a_parameter():
    """An embedding's output that was made to need a gradient is a leaf too, and its copy is kept."""
    tape = Tape()
    x = Leaf.of(tape.new(8, FP32, "x"))
    with tape.autocasting(BF16):
        assert tape.lower(x) is tape.lower(x)


def graph(kind: str, x: torch.Tensor) -> torch.Tensor:
    y = F.silu(x)
    if kind == "fresh":  # both users make a gradient of their own
        return F.silu(y) + F.gelu(y)
    if kind == "passed on":  # one user hands its own gradient on, which the other has read by then
        return F.silu(y + F.silu(y))
    if kind == "passed on twice":  # one tensor waits in two buffers
        z = F.silu(y)
        return F.silu(y + z + F.gelu(z))
    return F.silu(y) + F.gelu(y) + torch.tanh(y)


def graph_on_tape(kind: str, t: Tape, x: Tensor) -> Tensor:
    y = activation(t, x, "silu")
    if kind == "fresh":
        return add(t, activation(t, y, "silu"), activation(t, y, "gelu"))
    if kind == "passed on":
        return activation(t, add(t, y, activation(t, y, "silu")), "silu")
    if kind == "passed on twice":
        z = activation(t, y, "silu")
        return activation(t, add(t, add(t, y, z), activation(t, z, "gelu")), "silu")
    return add(t, add(t, activation(t, y, "silu"), activation(t, y, "gelu")), activation_of_result(t, y, "tanh"))


@pytest.mark.parametrize("kind", ["fresh", "passed on", "passed on twice", "three"])
def test_gradients_are_added_in_place_where_torch_does(kind):
    """The engine adds into a buffer that nobody else reads, and makes a new tensor where one does."""
    x = torch.randn(64, requires_grad=True)
    out = graph(kind, x).sum()
    with torch.autograd.profiler.profile() as profile:
        out.backward()
    made = sum(event.name == "aten::add" for event in profile.function_events)
    tape = Tape()
    ours = Tensor(None, 64, FP32, requires_grad=True)
    end = graph_on_tape(kind, tape, ours)
    tape.backward(end, tape.new(64, FP32, "gradient"))

    assert made == sum(name == "gradient sum" for _, _, name, _ in tape.storages)


@pytest.mark.parametrize("kind", ["fresh", "passed on", "passed on twice", "three"])
def test_gradients_of_subclasses_are_never_added_in_place(kind):
    """Under a dispatch mode every sum is a new tensor, and the tape can be told so."""
    x, ours = pair((64,))

    assert of_torch(lambda x: graph(kind, x), x) == of_tape(lambda t, x: graph_on_tape(kind, t, x), ours)


def test_backward_runs_the_newest_node_first():
    """The engine takes ready nodes by descending sequence number."""
    order: list[str] = []

    def note(name: str):
        def backward(t, grads, saved):
            order.append(name)
            return (grads[0], grads[0])

        return backward

    tape = Tape()
    x = Tensor(None, 8, FP32, requires_grad=True)
    made = {}
    for name, inputs in {"a": (x,), "b": (x,), "c": ("a", "b"), "d": ("a", "c")}.items():
        made[name] = tape.new(8, FP32, name)
        tape.record(made[name], [made.get(i, i) if isinstance(i, str) else i for i in inputs], None, note(name))
    tape.backward(made["d"], tape.new(8, FP32, "gradient"))

    assert order == ["d", "c", "b", "a"]


def test_a_node_that_nothing_reaches_does_not_run():
    """What was computed beside the loss makes no gradient."""
    tape = Tape()
    x = Tensor(None, 64, FP32, requires_grad=True)
    activation_of_result(tape, x, "beside")
    out = activation(tape, x, "silu")
    tape.backward(out, tape.new(64, FP32, "seed"))

    assert [name for _, _, name, _ in tape.storages] == ["beside", "silu", "seed", "gradient"]


def test_gradients_take_the_dtype_of_what_they_belong_to():
    """`validate_outputs` casts a gradient that comes in another type."""
    x, ours = pair((64,), BF16)

    assert of_torch(lambda x: F.silu(x.float()), x) == of_tape(lambda t, x: activation(t, t.cast(x, FP32), "silu"), ours)


def test_unused_outputs_count_as_zeros():
    """One output of a split that nobody uses: backward still makes the whole gradient."""
    x, ours = pair((64,))

    assert of_torch(lambda x: x.split(32)[0] * 2, x) == of_tape(lambda t, x: scale(t, split(t, x, (32, 32))[0]), ours)


def test_the_last_save_ends_a_recomputation():
    """What comes after it in the region is not made again."""
    tape = Tape()
    x = Tensor(None, 64, FP32, requires_grad=True)

    def region(x: Tensor) -> Tensor:
        y = activation(tape, x, "silu")
        return scale(tape, scale(tape, y, "tail"), "tail")

    out = tape.checkpoint(region, x, reentrant=False)
    tape.backward(out, tape.new(64, FP32, "gradient"))
    names = [name for _, _, name, _ in tape.storages]

    assert (names.count("silu"), names.count("tail")) == (1, 2)  # silu saves its input, before its output is made


def test_save_raises_when_the_last_is_there():
    """Inside a recomputation only; the signal is the tape's own."""
    tape = Tape()
    seen = []

    def region(x: Tensor) -> Tensor:
        try:
            saved = tape.save(x)
        except StopRecomputation:
            seen.append("stopped")
            raise
        out = tape.new(8, FP32, "out")
        tape.record(out, (x,), saved, lambda t, grads, saved: (grads[0],))
        return out

    out = tape.checkpoint(region, Tensor(None, 8, FP32, requires_grad=True), reentrant=False)
    assert seen == []
    tape.backward(out, tape.new(8, FP32, "gradient"))

    assert seen == ["stopped"]


@pytest.mark.parametrize("checkpointed", [True, False])
def test_what_a_function_keeps_for_itself_outlives_checkpointing(checkpointed):
    """A plain attribute of a custom function is seen by no saved-tensor hook: it dies with the graph, and is not kept twice."""
    tape = Tape()

    def region(x: Tensor) -> Tensor:
        saved = tape.save(x)
        held = tape.new(100, FP32, "attribute")
        out = tape.new(8, FP32, "out")
        tape.record(out, (x,), saved, lambda t, grads, saved: (grads[0],))
        tape.keep(held)
        return out

    x = Tensor(None, 8, FP32, requires_grad=True)
    out = tape.checkpoint(region, x, reentrant=False) if checkpointed else region(x)
    assert live_curve(tape)[-1] == 432
    tape.backward(out, tape.new(8, FP32, "gradient"))
    del out
    assert live_curve(tape)[-1] >= 400
    tape.free_graph()

    assert live_curve(tape)[-1] == 32  # x's gradient


def test_a_shared_leaf_waits_for_both_gradients():
    """A tied weight's gradient is accumulated once, when both users have run: the first is alive until then."""
    tape = Tape()
    weight = Tensor(None, 64, FP32, requires_grad=True)
    tape.share(weight)
    end = add(tape, activation(tape, weight, "first"), activation(tape, weight, "second"))
    tape.backward(end, tape.new(64, FP32, "gradient"))

    assert weight.grad is not None
    assert len(tape.gradients) == 1


@pytest.mark.parametrize("is_view", [False, True])
def test_tied_gradients_meet_in_the_first_unless_it_is_a_view(is_view):
    """As torch's engine has it: a plain gradient takes the second in place, a transposed one does not."""
    torch = pytest.importorskip("torch")
    addresses = []

    class Use(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, weight):
            return weight.clone()

        @staticmethod
        def backward(_ctx, _grad):
            made = torch.ones(8, 8)
            addresses.append(made.data_ptr())
            return made.t() if is_view else made

    real = torch.zeros(8, 8, requires_grad=True)
    (real * 2 + Use.apply(real)).sum().backward()  # the later use comes back first
    tape = Tape()
    weight = Tensor(None, 64, FP32, requires_grad=True)
    tape.share(weight)
    first = tape.new(64, FP32, "first")
    first.is_view = is_view
    arrived = first.storage.index
    tape._deliver(weight, 0, first)
    del first
    tape._deliver(weight, 0, tape.new(64, FP32, "second"))

    assert (weight.grad.storage.index == arrived) == (real.grad.data_ptr() == addresses[0]) == (not is_view)


def test_segments_share_out_the_events():
    """Phases and regions are half-open stretches one after the other, forward regions mirrored in backward."""
    tape = Tape()
    x = Tensor(None, 64, FP32, requires_grad=True)
    with tape.phase(Phase.FORWARD):
        y = activation(tape, x, "before")
        for repeat in (5, 5):
            with tape.region(0, repeat):
                y = activation(tape, y, "inside")
        y = activation(tape, y, "after")
    with tape.phase(Phase.BACKWARD):
        tape.backward(y, tape.new(64, FP32, "gradient"))
    ends = [segment.end for segment in tape.segments]

    assert [0, *ends[:-1]] == [segment.begin for segment in tape.segments]
    assert len(tape.events) >= ends[-1]
    assert [
        (segment.phase, segment.repeat) for segment in tape.segments if segment.region is not None
    ] == [(Phase.FORWARD, 5)] * 2 + [(Phase.BACKWARD, 5)] * 2


def test_kernel_scratch_is_a_category_of_its_own():
    """All at once, and gone."""
    tape = Tape()
    tape.scratch("room", 100, 200)

    assert tape.events in ([0, 1, ~1, ~0], [0, 1, ~0, ~1])
    assert {Category.WORKSPACE} == {category for *_, category in tape.storages}
