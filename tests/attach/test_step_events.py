"""What happens around and inside a step: nested hooks, closures, hooks that read and write rates, odd contexts."""

import copy
import gc
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import flatwise
from contract.training import bits, make_parameters, parameters_of, same_bits, set_gradients, train, values, wave

# The fused optimizers say when they are not.
pytestmark = pytest.mark.filterwarnings("ignore:.* runs torch's own step:UserWarning")

SCOPES = ("all", "group", "tensor", "channel", "element")
FINE = ("tensor", "channel", "element")
COARSE = ("all", "group")
DOUBLE = flatwise.Constant(2.0)
UNIFORM = flatwise.Uniform(0.5, 1.5)


def one_parameter(value=1.0, shape=(3,)):
    parameter = nn.Parameter(torch.full(shape, value))
    parameter.grad = torch.ones(shape)
    return parameter


class CallsSuper(torch.optim.SGD):
    """A subclass as many are: something of its own around the parent's step."""

    def step(self, closure=None):
        return super().step(closure)


class FusedCallsSuper(flatwise.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


# Hooks that torch calls twice


COMPOSED = [
    *(flatwise.Perturbation(flatwise.Constant(3.0), scope) for scope in SCOPES),
    flatwise.Perturbation(flatwise.Mixture(1.0, flatwise.Constant(3.0), DOUBLE)),
    [flatwise.Perturbation(flatwise.Constant(1.5), "tensor"), flatwise.Perturbation(DOUBLE, "all")],
    [flatwise.Perturbation(flatwise.Constant(1.5), "element"), flatwise.Perturbation(DOUBLE, "channel")],
]


@pytest.mark.parametrize("kind", [CallsSuper, FusedCallsSuper])
@pytest.mark.parametrize("perturbation", COMPOSED, ids=str)
def test_a_step_that_calls_super_is_perturbed_once(kind, perturbation):
    torch.optim.SGD([one_parameter()], lr=0.1)  # from now on the parent's step calls the hooks too
    parameter = one_parameter()
    handle = flatwise.perturb(kind([parameter], lr=1.0), perturbation)
    handle.optimizer.step()
    assert parameter.tolist() == [-2.0] * 3
    assert handle.step == 1


def test_what_a_subclass_does_around_the_fused_step_is_scaled_too():
    class Decays(flatwise.optim.SGD):
        def step(self, closure=None):
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.sub_(group["lr"] * 1.0)
            return super().step(closure)

    parameter = one_parameter()
    optimizer = Decays([parameter], lr=1.0, perturbation=flatwise.Perturbation(flatwise.Constant(3.0)))
    optimizer.step()
    assert parameter.tolist() == [1 - 3 * 2.0] * 3
    assert optimizer.fallback == "Decays has a step of its own"


def test_a_fused_subclass_that_is_not_fused_says_so():
    with pytest.warns(UserWarning, match="FusedCallsSuper runs torch's own step .* FusedCallsSuper has a step of its"):
        FusedCallsSuper([one_parameter()], lr=1.0, perturbation=flatwise.leap())


class Swallows(torch.optim.SGD):
    """The parent's step fails, after its hooks were called, and the subclass goes on."""

    def step(self, closure=None):
        try:
            super().step(closure)
        except RuntimeError:
            with torch.no_grad():
                self.param_groups[0]["params"][0].sub_(self.param_groups[0]["lr"])


def failing():
    raise RuntimeError("no loss today")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("call", ["bound", "of the class"])
def test_a_failure_that_a_subclass_survives_does_not_count_twice_or_stay(scope, call):
    torch.optim.SGD([one_parameter()], lr=0.1)
    parameter = one_parameter()
    optimizer = Swallows([parameter], lr=1.0)
    handle = flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(3.0), scope))
    step = optimizer.step if call == "bound" else lambda closure: Swallows.step(optimizer, closure)
    for count in (1, 2):
        step(failing)
        assert parameter.tolist() == [1 - 3.0 * count] * 3
        assert (handle.step, optimizer.param_groups[0]["lr"]) == (count, 1.0)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_failure_of_the_class_s_own_step_is_forgotten_at_the_next(scope):
    """``SGD.step(optimizer)`` passes our guard by: the step after a failed one must not look like a nested one."""
    parameter = one_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    handle = flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(3.0), scope))
    with pytest.raises(RuntimeError, match="no loss"):
        torch.optim.SGD.step(optimizer, failing)
    torch.optim.SGD.step(optimizer)
    assert parameter.tolist() == [-2.0] * 3
    assert (handle.step, optimizer.param_groups[0]["lr"]) == (1, 1.0)


def test_no_rate_stays_noisy_when_preparing_a_step_fails():
    optimizer = torch.optim.SGD([("a", one_parameter())], lr=1.0)
    flatwise.perturb(optimizer, [flatwise.Perturbation(DOUBLE, "all"), flatwise.Perturbation(DOUBLE, "tensor")])
    optimizer.param_groups[0]["param_names"].append("whose is this?")
    with pytest.raises(ValueError, match="parameter group 0 has 2 names for 1 parameters"):
        torch.optim.SGD.step(optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0


# Rates that are read and written during a step


def rates(tensor):
    return (lambda: torch.tensor(1.0)) if tensor else (lambda: 1.0)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("scope", COARSE)
def test_a_closure_sees_the_scheduled_rate_and_what_it_writes_stays(scope, tensor):
    parameter = one_parameter()
    optimizer = torch.optim.SGD([parameter], lr=rates(tensor)())
    flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(3.0), scope))
    (group,) = optimizer.param_groups
    seen = []

    def closure():
        seen.append(float(group["lr"]))
        if tensor:
            group["lr"].fill_(0.5)
        else:
            group["lr"] = 0.5
        return torch.tensor(0.0)

    optimizer.step(closure)
    assert seen == [1.0]
    assert parameter.tolist() == [1 - 3 * 0.5] * 3
    assert float(group["lr"]) == 0.5


@pytest.mark.parametrize("scope", COARSE)
def test_schedulers_in_closures_do_what_they_do_without_noise(scope):
    """Lightning runs a whole ``training_step`` inside ``step``, and some step their scheduler there."""
    histories = []
    for noisy in (False, True):
        optimizer = torch.optim.SGD([one_parameter()], lr=1.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        if noisy:
            flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Uniform(2.0, 3.0), scope))
        history = []
        for _ in range(4):
            optimizer.step(scheduler.step)
            history.append(optimizer.param_groups[0]["lr"])
        histories.append(history)
    assert histories[0] == histories[1] == [0.5, 0.25, 0.125, 0.0625]


def test_a_rate_that_a_closure_writes_is_kept_within_the_bounds():
    """Also where the rate that the step began with needed no change."""
    parameter = one_parameter()
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(1.0), "all", min_lr=0.5, max_lr=1.0))
    (group,) = optimizer.param_groups
    optimizer.step(lambda: group.update(lr=0.25))
    assert parameter.tolist() == [0.5] * 3
    assert group["lr"] == 0.25


def test_a_closure_by_keyword_and_a_callable_object_are_closures():
    class Closure:
        def __call__(self):
            seen.append(optimizer.param_groups[0]["lr"])

    seen = []
    optimizer = torch.optim.SGD([one_parameter()], lr=1.0)
    flatwise.perturb(optimizer, flatwise.Perturbation(DOUBLE, "all"))
    optimizer.step(closure=Closure())
    optimizer.step(Closure())
    assert seen == [1.0, 1.0]


def test_a_model_that_is_an_argument_of_step_arrives_as_it_is():
    class TakesModel(torch.optim.SGD):
        def step(self, model):
            assert model.weight is not None
            super().step()

    optimizer = TakesModel([one_parameter()], lr=1.0)
    with pytest.warns(UserWarning, match="could not check that the learning rate of TakesModel acts"):
        flatwise.perturb(optimizer, flatwise.Perturbation(DOUBLE, "all"))
    optimizer.step(nn.Linear(1, 1))


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_see_the_scheduled_rate_whenever_they_were_registered(when):
    seen = []

    def hook(optimizer, args, kwargs):
        seen.append(optimizer.param_groups[0]["lr"])

    optimizer = torch.optim.SGD([one_parameter()], lr=1.0)

    def register():
        optimizer.register_step_pre_hook(hook)
        optimizer.register_step_post_hook(hook)

    if when == "before":
        register()
    flatwise.perturb(optimizer, flatwise.Perturbation(DOUBLE, "all"))
    if when == "after":
        register()
    optimizer.step()
    assert seen == [1.0, 1.0]


@pytest.mark.parametrize("tensor", [False, True])
def test_an_optimizer_that_writes_its_own_rate_keeps_it(tensor):
    class WritesRate(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for count, group in enumerate(self.param_groups):
                if tensor:
                    group["lr"].fill_(0.25 + count)
                else:
                    group["lr"] = 0.25 + count

    optimizer = WritesRate([one_parameter()], lr=rates(tensor)())
    flatwise.perturb(optimizer, flatwise.Perturbation(DOUBLE, "all"))
    optimizer.step()
    assert float(optimizer.param_groups[0]["lr"]) == 0.25


def test_a_tensor_that_groups_share_is_one_rate_in_closures_too():
    rate = torch.tensor(1.0)
    first, second = one_parameter(), one_parameter()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(3.0), "all"))
    optimizer.step(lambda: float(rate.mul_(0.5)))
    assert rate.item() == 0.5
    assert first.tolist() == second.tolist() == [1 - 3 * 0.5] * 3


# Identities


def networks():
    torch.manual_seed(0)
    return nn.Linear(4, 3), nn.Linear(4, 3)


@pytest.mark.parametrize("fused", [False, True])
def test_names_that_collide_across_groups_do_not_share_their_noise(fused):
    one, two = networks()
    groups = [{"params": one.named_parameters()}, {"params": two.named_parameters()}]
    make = flatwise.optim.SGD if fused else torch.optim.SGD
    optimizer = make(groups, lr=1.0)
    handle = flatwise.perturb(optimizer, flatwise.lr_dropout(0.5))
    assert not torch.equal(handle.factor(0, one.weight), handle.factor(0, two.weight))
    masks = []
    for layer in (one, two):
        layer.weight.grad, old = torch.ones(3, 4), layer.weight.detach().clone()
        masks.append((layer.weight, old))
    optimizer.step()
    for weight, old in masks:
        assert torch.equal(weight.detach() != old, handle.factor(0, weight) == 1.0)


def test_the_first_of_colliding_names_has_the_noise_of_that_name_alone():
    one, two = networks()
    both = torch.optim.SGD([{"params": one.named_parameters()}, {"params": two.named_parameters()}], lr=1.0)
    alone = torch.optim.SGD(two.named_parameters(), lr=1.0)
    first = flatwise.perturb(both, flatwise.leap(0.5)).factor(3, one.weight)
    assert torch.equal(first, flatwise.perturb(alone, flatwise.leap(0.5)).factor(3, two.weight))


def test_equal_names_in_one_group_do_not_share_their_noise():
    one, two = one_parameter(), one_parameter()
    with warnings.catch_warnings():
        handle = flatwise.perturb(torch.optim.SGD([("w", one), ("w", two)], lr=1.0), flatwise.leap(0.5))
    assert not torch.equal(handle.factor(0, one), handle.factor(0, two))


@pytest.mark.parametrize("make", [torch.optim.SGD, flatwise.optim.SGD])
def test_a_run_and_its_copy_agree_after_a_group_was_replaced(make):
    """Positions count over all groups: what stays in place may have another one."""
    parameters = [one_parameter() for _ in range(4)]
    optimizer = make([{"params": [parameters[0]]}, {"params": [parameters[1]]}], lr=1.0)
    handle = flatwise.perturb(optimizer, flatwise.leap(0.5))
    optimizer.step()
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "params": parameters[2:]}
    twin = copy.deepcopy(handle)
    for parameter in parameters_of(twin.optimizer):
        parameter.grad = torch.ones(3)
    for of in (handle, twin):
        before = values(of.optimizer)
        of.optimizer.step()
        for old, new in zip(before, parameters_of(of.optimizer), strict=True):
            torch.testing.assert_close(new - old, -of.factor(1, new))
    assert same_bits(values(optimizer), values(twin.optimizer))


@pytest.mark.parametrize("make", [torch.optim.SGD, flatwise.optim.SGD])
@pytest.mark.parametrize("change", ["a name", "a group"])
def test_asking_for_a_factor_does_not_hide_a_change_from_the_step(make, change):
    first, second = one_parameter(), one_parameter()
    groups = [{"params": [("a", first)]}, {"params": [("b", second)]}]
    if change == "a group":  # then what stays has another position
        groups = [{"params": [first]}, {"params": [second]}]
    optimizer = make(groups, lr=1.0)
    handle = flatwise.perturb(optimizer, flatwise.leap(0.5))
    first.grad = None
    optimizer.step()
    if change == "a group":
        del optimizer.param_groups[0]
    else:
        optimizer.param_groups[1]["param_names"][0] = "c"
    factor, old = handle.factor(1, second), second.detach().clone()
    optimizer.step()
    torch.testing.assert_close(second - old, -factor)


def test_buffers_of_replaced_parameters_are_released():
    optimizer = torch.optim.SGD(make_parameters(), lr=0.1)
    handle = flatwise.perturb(optimizer, flatwise.leap(0.1))
    train(optimizer, 1)
    buffers = [weakref.ref(slot.old) for slot in handle._step._slots.values()]
    optimizer.param_groups[0]["params"] = make_parameters()
    train(optimizer, 1)
    gc.collect()
    assert [buffer() for buffer in buffers] == [None] * 3
    assert len(handle._step._slots) == 3


# Contexts


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", [torch.optim.SGD, flatwise.optim.SGD, torch.optim.AdamW], ids=str)
def test_a_default_device_and_dtype_change_nothing(scope, make):
    histories = []
    for odd in (False, True):
        optimizer = make(make_parameters(), lr=0.1)
        # A new seed each time, so that no cached factor hides one that is drawn under the odd defaults.
        handle = flatwise.perturb(
            optimizer, flatwise.Perturbation(UNIFORM, scope), seed=hash((scope, str(make))) % 2**60
        )
        train(optimizer, 1)  # torch's own states are made here
        set_gradients(optimizer, 1)
        if odd:
            torch.set_default_device("meta")
            torch.set_default_dtype(torch.float64)
            from flatwise._attach.factors import _rate_factors

            _rate_factors.cache_clear()
        try:
            optimizer.step()
            factors = [handle.factor(7, parameter) for parameter in parameters_of(optimizer)]
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
        histories.append((values(optimizer), factors))
    assert same_bits(*histories)
    assert {factor.dtype for factor in histories[1][1]} == {torch.float32}


@pytest.mark.parametrize("scope", COARSE)
def test_a_rate_that_is_a_tensor_comes_back_under_another_default_device(scope):
    optimizer = torch.optim.SGD([one_parameter()], lr=torch.tensor(0.5), foreach=False)
    flatwise.perturb(optimizer, flatwise.Perturbation(DOUBLE, scope))
    torch.set_default_device("meta")
    try:
        optimizer.step()
    finally:
        torch.set_default_device(None)
    assert optimizer.param_groups[0]["lr"].item() == 0.5


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", [torch.optim.SGD, flatwise.optim.SGD], ids=str)
def test_steps_in_inference_mode_and_out_of_it_are_steps(scope, make):
    histories = []
    for modes in ((False, False, False), (True, False, True)):
        optimizer = make(make_parameters(), lr=torch.tensor(0.1) if scope in COARSE else 0.1)
        flatwise.perturb(optimizer, flatwise.Perturbation(UNIFORM, scope))
        for step, inference in enumerate(modes):
            set_gradients(optimizer, step)
            with torch.inference_mode(inference):
                optimizer.step()
        histories.append(values(optimizer))
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
    assert same_bits(*histories)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", [torch.optim.SGD, flatwise.optim.SGD], ids=str)
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_parameters_without_memory_can_be_stepped(scope, make, kind):
    """As tools do that plan the memory of a training; nothing may be read or written by address."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta") if kind == "meta" else FakeTensorMode():
        layer = nn.Linear(4, 3)
        optimizer = make(layer.named_parameters(), lr=0.1, momentum=0.9)
        # A seed for each case, so that no factor was drawn before.
        seed = SCOPES.index(scope) + 10 * (kind == "fake") + 100 * (make is flatwise.optim.SGD)
        handle = flatwise.perturb(optimizer, flatwise.Perturbation(UNIFORM, scope), seed=seed)
        for parameter in layer.parameters():
            parameter.grad = torch.empty_like(parameter)
        for _ in range(2):
            optimizer.step()
    assert handle.step == 2
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("scope", COARSE)
def test_the_factor_of_a_coarse_scope_is_float32_whatever_the_default(scope):
    optimizer = torch.optim.SGD(make_parameters(), lr=0.1)
    handle = flatwise.perturb(optimizer, flatwise.Perturbation(UNIFORM, scope))
    torch.set_default_dtype(torch.float64)
    try:
        factor = handle.factor(0, parameters_of(optimizer)[0])
    finally:
        torch.set_default_dtype(torch.float32)
    assert factor.dtype == torch.float32


def test_numbers_of_numpy_are_numbers():
    optimizer = torch.optim.SGD(make_parameters(), lr=0.1)
    handle = flatwise.perturb(
        optimizer,
        flatwise.random_lr(np.float32(8.0), np.float64(0.5), max_lr=np.float32(1.0)),
        seed=np.uint64(2**63),
        step=np.int64(3),
        steps_per_epoch=np.int32(2),
        epochs=np.int64(4),
    )
    assert (handle.seed, handle.step) == (2**63, 3)
    assert handle.factor(np.int64(5)) == handle.factor(5)
    handle.step = np.int64(6)
    own = {key: value for key, value in optimizer.param_groups[0].items() if key.startswith("flatwise_")}
    assert {type(value) for value in own.values()} == {int}
    assert flatwise.leap(np.float32(0.5)) == flatwise.leap(0.5)
    assert type(flatwise.Normal(np.float64(1.0), 0.1, np.float32(0.0)).minimum) is float


@pytest.mark.parametrize("step", [True, 1.0, "1", -1, 2**40, torch.tensor(1)])
def test_what_is_no_step_is_refused(step):
    handle = flatwise.perturb(torch.optim.SGD(make_parameters(), lr=0.1), flatwise.leap(0.1))
    with pytest.raises(ValueError, match=r"step must be an integer in \[0, 2\*\*40\), got"):
        handle.step = step


# Optimizers that move what has no gradient


class MovesAll(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        p.sub_(group["lr"])


def test_a_parameter_that_is_moved_without_a_gradient_is_scaled_too():
    moved = nn.Parameter(torch.ones(3))
    optimizer = MovesAll([one_parameter(), moved], lr=1.0)
    flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(3.0), "tensor"))
    optimizer.step()
    assert moved.tolist() == [-2.0] * 3


# The handle


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda handle: pickle.loads(pickle.dumps(handle))])
def test_a_copy_of_a_handle_is_the_handle_of_a_copy(duplicate):
    handle = flatwise.perturb(torch.optim.SGD(make_parameters(), lr=0.1), flatwise.leap(0.3), seed=5, stream=2)
    train(handle.optimizer, 2)
    other = duplicate(handle)
    assert other.optimizer is not handle.optimizer
    assert flatwise.handle_of(other.optimizer) is other
    assert (other.step, other.seed, other.stream) == (2, 5, 2)
    assert same_bits(train(other.optimizer, 2, start=2), train(handle.optimizer, 2, start=2))
    other.remove()
    assert flatwise.handle_of(handle.optimizer) is handle
    assert flatwise.handle_of(other.optimizer) is None
    with pytest.raises(ValueError, match="perturbed already"):
        flatwise.perturb(handle.optimizer, flatwise.leap())


def test_a_handle_and_its_optimizer_stay_together_when_copied_together():
    optimizer = torch.optim.SGD(make_parameters(), lr=0.1)
    handle = flatwise.perturb(optimizer, flatwise.leap(0.3))
    pair = copy.deepcopy({"handle": handle, "optimizer": optimizer})
    assert pair["handle"].optimizer is pair["optimizer"]
    assert flatwise.handle_of(pair["optimizer"]) is pair["handle"]


def test_a_removed_handle_can_be_copied():
    handle = flatwise.perturb(torch.optim.SGD(make_parameters(), lr=0.1), flatwise.ralr(), steps_per_epoch=2, seed=3)
    handle.remove()
    other = copy.deepcopy(handle)
    assert other.factor(9) == handle.factor(9)
    assert flatwise.handle_of(other.optimizer) is None
    other.remove()


def test_what_is_no_attribute_of_a_handle_is_refused():
    handle = flatwise.perturb(torch.optim.SGD(make_parameters(), lr=0.1), flatwise.leap(0.3))
    for name in ("perturbations", "perturbation", "seed", "sigma", "optimizer"):
        with pytest.raises(AttributeError):
            setattr(handle, name, flatwise.leap(0.5))
    assert handle.perturbations == (flatwise.leap(0.3),)


def test_removing_a_handle_inside_a_step_ends_the_noise():
    parameter = one_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    handle = flatwise.perturb(optimizer, flatwise.Perturbation(DOUBLE, "all"))
    optimizer.step(handle.remove)
    assert parameter.tolist() == [0.0] * 3
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert not [key for key in optimizer.param_groups[0] if key.startswith("flatwise")]


# The calendar on resume


@pytest.mark.parametrize(
    ("method", "changed", "warns"),
    [
        (flatwise.ralr(), {"steps_per_epoch": 3}, True),
        (flatwise.ralr(), {"epochs": 9}, False),
        (flatwise.random_lr(), {"epochs": 9}, True),
        (flatwise.random_lr(), {"steps_per_epoch": 3}, True),
        (flatwise.leap(), {"steps_per_epoch": 3, "epochs": 9}, False),
    ],
)
@pytest.mark.parametrize("first", ["load", "perturb"])
def test_another_calendar_on_resume_is_said_where_it_matters(method, changed, warns, first):
    calendar = {"steps_per_epoch": 2, "epochs": 4}
    optimizer = torch.optim.SGD(make_parameters(), lr=0.1)
    flatwise.perturb(optimizer, method, **calendar)
    train(optimizer, 3)
    saved = optimizer.state_dict()
    resumed = torch.optim.SGD(make_parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if first == "load":
            resumed.load_state_dict(saved)
        handle = flatwise.perturb(resumed, method, **(calendar | changed))
        if first == "perturb":
            resumed.load_state_dict(saved)
    said = [str(w.message) for w in caught if "another steps_per_epoch or epochs" in str(w.message)]
    assert bool(said) == warns
    assert handle.step == 3


@pytest.mark.parametrize("first", ["load", "perturb"])
def test_a_run_that_goes_on_with_names_that_it_had_not_is_told(first):
    layer = nn.Linear(3, 2)
    unnamed = torch.optim.SGD(layer.parameters(), lr=0.1)
    flatwise.perturb(unnamed, flatwise.leap())
    named = torch.optim.SGD(layer.named_parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="identified by position, and this optimizer identifies them by name"):
        if first == "perturb":
            flatwise.perturb(named, flatwise.leap())
        named.load_state_dict(unnamed.state_dict())
        if first == "load":
            flatwise.perturb(named, flatwise.leap())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", flatwise.SharedNoiseWarning)
        again = torch.optim.SGD(layer.parameters(), lr=0.1)
        again.load_state_dict(named.state_dict())  # torch takes the names along
        handle = flatwise.perturb(again, flatwise.leap())
    assert torch.equal(handle.factor(0, layer.weight), flatwise.handle_of(named).factor(0, layer.weight))


# Two optimizers of one process


def generator_and_discriminator():
    return (torch.optim.SGD(nn.Linear(3, 2).named_parameters(), lr=1.0) for _ in range(2))


def test_two_optimizers_with_one_noise_are_said_and_a_stream_tells_them_apart():
    one, two = generator_and_discriminator()
    first = flatwise.perturb(one, flatwise.lr_dropout(), seed=7)
    with pytest.warns(flatwise.SharedNoiseWarning, match=r"seed=7, stream=0, .*another stream, such as stream=1"):
        second = flatwise.perturb(two, flatwise.lr_dropout(), seed=7)
    weights = [parameters_of(optimizer)[0] for optimizer in (one, two)]
    assert torch.equal(first.factor(0, weights[0]), second.factor(0, weights[1]))
    second.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error", flatwise.SharedNoiseWarning)
        second = flatwise.perturb(two, flatwise.lr_dropout(), seed=7, stream=1)
        assert not torch.equal(first.factor(0, weights[0]), second.factor(0, weights[1]))
        saved, (three, _) = two.state_dict(), generator_and_discriminator()
        three.load_state_dict(saved)
    third = flatwise.perturb(three, flatwise.lr_dropout())
    assert (third.seed, third.stream) == (7, 1)
    assert torch.equal(third.factor(0, parameters_of(three)[0]), second.factor(0, weights[1]))


def test_no_warning_for_another_seed_or_scope_or_for_copies_or_the_dead():
    with warnings.catch_warnings():
        warnings.simplefilter("error", flatwise.SharedNoiseWarning)
        for _ in range(3):  # each run's optimizer is dead when the next one begins, if only as a reference cycle
            one, _ = generator_and_discriminator()
            flatwise.perturb(one, flatwise.leap(), seed=11)
            del one
        one, two = generator_and_discriminator()
        handle = flatwise.perturb(one, flatwise.leap(), seed=12)
        copies = copy.deepcopy(handle), pickle.loads(pickle.dumps(one))
        flatwise.perturb(two, flatwise.leap(), seed=13)
        # One draw for a model whose parameters two optimizers share is what scope "all" means.
        three, four = generator_and_discriminator()
        flatwise.perturb(three, flatwise.ralr(), steps_per_epoch=2)
        flatwise.perturb(four, flatwise.ralr(), steps_per_epoch=2)
        del copies


def test_stream_0_is_the_seed_s_own_noise_and_another_stream_is_not_another_seed_nearby():
    parameter = nn.Parameter(wave((5,)))

    def factor(**options):
        with flatwise.perturb(torch.optim.SGD([parameter], lr=0.1), flatwise.leap(1.0), **options) as handle:
            return handle.factor(0, parameter)

    plain = factor(seed=3)
    assert torch.equal(plain, factor(seed=3, stream=0))
    given = [(3, 1), (3, 2), (3, 2**64 - 1), (4, 0), (4, 1)]
    factors = [plain, *(factor(seed=seed, stream=stream) for seed, stream in given)]
    assert len({bits(of).numpy().tobytes() for of in factors}) == 6


# Parameters that a closure writes


@pytest.mark.parametrize("scope", FINE)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, flatwise.optim.SGD, CallsSuper], ids=str)
def test_what_a_closure_writes_into_parameters_is_not_scaled(scope, make):
    """As a projection, or the moving average of another network, in Lightning's ``training_step``."""
    results = []
    for inside in (False, True):
        parameters = make_parameters()
        average = nn.Parameter(torch.zeros(4, 3))  # never has a gradient
        optimizer = make([*parameters, average], lr=0.5)
        flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Bernoulli(0.5), scope))

        def prepare(parameters=parameters, average=average):
            with torch.no_grad():
                for parameter in parameters:
                    parameter.clamp_(-0.3, 0.3)
                average.lerp_(parameters[0], 0.5)
            for position, parameter in enumerate(parameters):
                parameter.grad = torch.sin(3 * parameter.detach() + position)

        for _ in range(3):
            if inside:
                optimizer.step(prepare)
            else:
                prepare()
                optimizer.step()
        results.append(values(optimizer))
    assert same_bits(*results)


def test_a_second_closure_call_at_other_weights_changes_nothing():
    """SAM calls its closure again where the loss is worse, and steps from where it was."""

    class Sam(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure):
            with torch.enable_grad():
                closure()
            (parameter,) = self.param_groups[0]["params"]
            parameter.add_(1.0)
            with torch.enable_grad():
                closure()
            parameter.sub_(1.0)
            super().step()

    parameter = one_parameter()

    def closure():
        parameter.grad = torch.ones(3)

    optimizer = Sam([parameter], lr=1.0)
    flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(3.0), "tensor"))
    optimizer.step(closure)
    assert parameter.tolist() == [-2.0] * 3


# Memory that two parameters share


def test_parameters_that_share_memory_are_refused_per_element():
    one, two = one_parameter(), one_parameter()
    two.data = one.data
    optimizer = torch.optim.SGD([one, two], lr=0.1)
    for scope in FINE:
        with pytest.raises(ValueError, match="two parameters of the optimizer share memory"):
            flatwise.perturb(optimizer, flatwise.Perturbation(UNIFORM, scope))
    with flatwise.perturb(optimizer, flatwise.Perturbation(UNIFORM, "all")):
        optimizer.step()
    flat = torch.ones(6)
    halves = [nn.Parameter(flat[:3]), nn.Parameter(flat[3:])]
    flatwise.perturb(torch.optim.SGD(halves, lr=0.1), flatwise.leap())
