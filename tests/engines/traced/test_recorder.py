"""What the recorder writes down, against the storages of the same code run for real on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from planner.errors import UnsupportedModelError
from planner.ledger import Category, Phase
from tests.live import LiveStorages

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.traced.ghosts import HOST, Ghost  # noqa: E402
from planner.engines.traced.run import recording  # noqa: E402

F = torch.nn.functional


class LiveEvents(LiveStorages):
    """Storages of more than one element in the order in which they come and go: bytes, negative for a death."""

    def __init__(self) -> None:
        super().__init__(scalars=False)
        self.events: list[int] = []

    def _born(self, tensor: Any, known: set[int]) -> None:
        before = len(self._seen)
        super()._born(tensor, known)
        if len(self._seen) > before:
            self.events.append(tensor.untyped_storage().nbytes())

    def _dead(self, key: int) -> None:
        self.events.append(-self._seen[key])
        super()._dead(key)


def recorded(recorder: Any, begin: int = 0) -> list[int]:
    """The same of a recorder, without what happens inside kernels."""
    history = recorder.history
    seen = [
        history.sizes[e] if e >= 0 else -history.sizes[~e]
        for e in history.events[begin:]
        if history.categories[e if e >= 0 else ~e] is not Category.WORKSPACE
    ]
    return [size for size in seen if abs(size) > 8]


class Residual(torch.nn.Module):
    """Norms, a branch, dropout, a tied head: what decoders are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.up, self.down = torch.nn.Linear(16, 40), torch.nn.Linear(40, 16, bias=False)

    def forward(self, ids: Any) -> Any:
        """Logits."""
        x = self.embed(ids)
        x = x + self.down(F.relu(self.up(self.norm(x))))
        return x @ self.embed.weight.t()


class Convolution(torch.nn.Module):
    """A small image classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.Linear(4 * 36, 50)

    def forward(self, ids: Any) -> Any:
        """Logits."""
        x = ids.float()[:, None, None, :].expand(-1, 1, 8, 8)
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def sgd(parameters: Any) -> Any:
    """With a state, in one operation for all parameters."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True)


def adamw(parameters: Any) -> Any:
    """Two states, one parameter after the other."""
    return torch.optim.AdamW(parameters, foreach=False)


def adamw_foreach(parameters: Any) -> Any:
    """Two states, all parameters at once."""
    return torch.optim.AdamW(parameters, foreach=True)


def train(make: Callable[[], Any], optimizer: Callable[[Any], Any], device: str) -> None:
    """Three steps: the states appear, gradients are kept in the second and accumulated in the third."""
    torch.manual_seed(0)
    with torch.device(device):
        model = make()
    running = optimizer(model.parameters())
    ids = torch.zeros(3, 8, dtype=torch.int64, device=device)
    for clears in (True, False, True):
        loss = model(ids).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        running.step()
        if clears:
            running.zero_grad()
    del model, running, ids, loss


@pytest.mark.parametrize("optimizer", [sgd, adamw, adamw_foreach])
@pytest.mark.parametrize("make", [Residual, Convolution])
def test_steps_are_recorded_event_for_event(make: Callable[[], Any], optimizer: Callable[[Any], Any]) -> None:
    """Births and deaths, in order and to the byte, are those of three real steps."""
    gc.collect()
    live = LiveEvents()
    gc.disable()
    try:
        with live:
            train(make, optimizer, "cpu")
    finally:
        gc.enable()
    with recording((8, 0)) as recorder:
        train(make, optimizer, "cuda")

    assert live.events == recorded(recorder)


def test_numbers_of_a_batch_are_carried_along(recorder: Any) -> None:
    """Masks and positions that follow from the batch alone are known, so code may act on them."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).to("cuda")
    real = mask.cpu()

    assert (mask.cumsum(-1) - 1).value.tolist() == (real.cumsum(-1) - 1).tolist()
    assert (mask == 0).any().item() is True
    assert mask.sum(-1).max().item() == 3
    assert bool((mask >= 0).all())
    assert mask.bool().nonzero().shape == (5, 2)
    assert torch.randn(2, 4, device="cuda")[mask.bool()].shape == (5,)
    assert torch.arange(5, device="cuda")[1:3].tolist() == [1, 2]
    assert torch.equal(mask, mask.clone())
    assert mask.cpu().tolist() == real.tolist()


def test_numbers_follow_in_place_operations(recorder: Any) -> None:
    """What is written into a known tensor is known, through a view too."""
    real, x = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64, device="cuda")
    for y in (real, x):
        y += 3
        y[1] = 7
        y[2:] = torch.tensor([5, 6], device=y.device)
        y.view(2, 2)[0].add_(1)

    assert real.tolist() == x.tolist() == [4, 8, 5, 6]


def test_numbers_that_are_written_over_are_forgotten(recorder: Any) -> None:
    """A part that nobody knows any more, written through a view, makes the whole tensor and its other views unknown."""
    x = torch.zeros(2, 3, dtype=torch.int64, device="cuda")
    row, copied = x[1], x.clone()
    x[:, 1:] = torch.randn(2, 2, device="cuda").argsort()

    assert x.value is row.value is None
    assert copied.tolist() == [[0, 0, 0], [0, 0, 0]]
    with pytest.raises(UnsupportedModelError):
        row.tolist()


def test_a_float_that_is_read_is_zero(recorder: Any) -> None:
    """A loss that is logged does not stop a trace; an integer or a truth value that nobody knows does."""
    loss = torch.randn(3, device="cuda").sum()

    assert loss.item() == 0.0
    assert float(loss) == 0.0
    assert torch.randn(2, device="cuda").tolist() == [0.0, 0.0]
    with pytest.raises(UnsupportedModelError, match="only a real run has"):
        loss.long().item()


@pytest.mark.parametrize(
    ("act", "operation"),
    [
        (lambda x: (x > 0)[0].item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.argsort().tolist(), "_local_scalar_dense"),
        (lambda x: (x > 0).nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.argsort().unique(), "unique"),
        (lambda x: torch.equal(x, x + 1), "equal"),
        (lambda x: torch.ones(8, device="cuda").repeat_interleave((x > 0).long()), "repeat_interleave"),
    ],
)
def test_a_refusal_names_the_operation_and_the_place(recorder: Any, act: Callable[[Any], Any], operation: str) -> None:
    """What a result's size or a branch hangs on numbers that nobody has stops the trace there."""
    recorder.scope = "model.layers.3"
    x = torch.randn(8, device="cuda")
    with pytest.raises(UnsupportedModelError) as error:
        act(x)

    assert operation in error.value.message
    assert "in `model.layers.3`" in error.value.message
    assert "test_recorder.py:" in error.value.message
    assert "--engine analytic" in error.value.hint


def test_nothing_is_recorded_after_the_end() -> None:
    """Deaths behind the end are no part of the history."""
    with recording((8, 0)) as recorder:
        x = torch.ones(1024, device="cuda")
        history = recorder.end()
        count = len(history.events)
        del x

    assert count == len(history.events) == 1


def test_stretches_cover_the_events_in_order() -> None:
    """Each phase and instance is one stretch after the other, without a gap."""
    with recording((8, 0)) as recorder:
        recorder.inherits = False
        with recorder.during(Phase.FORWARD):
            x = torch.ones(8, device="cuda")
            recorder.enter(0, is_in_layer=True)
            y = x + 1
            recorder.leave()
            z = y * 2
        with recorder.during(Phase.BACKWARD):
            del x, y
            kept = z + 1
        history = recorder.end()
        del kept, z

    assert [(s.phase, s.begin, s.end, s.instance) for s in history.stretches] == [
        (Phase.FORWARD, 0, 1, None), (Phase.FORWARD, 1, 2, 0), (Phase.FORWARD, 2, 3, None), (Phase.BACKWARD, 3, 6, None),
    ]  # fmt: skip
    assert history.owners == [None, 0, None, None]


def test_owners_are_inherited(recorder: Any) -> None:
    """What is made of one instance's tensor is its own; in lists each output follows the tensor at its place."""
    owned = []
    for instance in (0, 1, None):
        with recorder.meaning(None, instance):
            owned.append(torch.ones(4, device="cuda"))
    single, mixed = owned[0] * 2, owned[0] + owned[1]
    listed = torch._foreach_mul(owned, 2.0)

    assert [recorder.owner_of(x) for x in (single, mixed)] == [0, None]
    assert [recorder.owner_of(x) for x in listed] == [0, 1, None]


def test_nothing_is_inherited_where_the_layers_say_it(recorder: Any) -> None:
    """In forward and backward the instance that runs owns what is born, not its arguments' owner."""
    with recorder.meaning(None, 1):
        x = torch.ones(4, device="cuda")
    recorder.inherits = False

    assert recorder.owner_of(x * 2) is None


def test_scratch_lives_inside_one_operation(recorder: Any) -> None:
    """Buffers of a kernel come together and go together; what a library keeps stays."""
    begin = len(recorder.history.events)
    recorder.scratch("scratch", 10, 0, 20)
    recorder.hold(30, "workspace")
    first = len(recorder.history.sizes) - 3

    assert recorder.history.events[begin:] == [first, first + 1, ~first, ~(first + 1), first + 2]
    assert recorder.history.sizes[first:] == [10, 20, 30]


def test_large_weights_on_the_host_have_no_numbers(recorder: Any) -> None:
    """Where weights are made, tensors from the limit on are on the host without data; smaller ones are real."""
    with recorder.making_weights(100):
        large, small = torch.empty(10, 10), torch.empty(9, 11)

    assert isinstance(large, Ghost)
    assert (large.device, large.cuda().is_cuda) == (HOST, True)
    assert type(small) is torch.Tensor
    assert len(recorder.history.sizes) == 1


def test_categories_follow_the_phase(recorder: Any) -> None:
    """Weights, activations, logits, temporaries, and what is declared."""
    recorder.vocab_size = 50
    found = []
    for phase in (Phase.LOAD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP):
        with recorder.during(phase), torch.set_grad_enabled(phase is Phase.FORWARD):
            found.append(torch.ones(2, 50, device="cuda"))
    with recorder.during(Phase.FORWARD, Category.INPUT):
        found.append(torch.ones(2, 50, device="cuda"))
    C = Category

    assert recorder.history.categories == [C.PARAMETER, C.LOGITS, C.LOGITS, C.TEMPORARY, C.INPUT]
