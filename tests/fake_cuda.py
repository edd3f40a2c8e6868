"""Stand-ins for a CUDA device on a CPU: one that counts how often a program would wait for it, and one for its graphs."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

# ---------------------------------------------------------------- a device that is waited for

#: The device; torch.device("cpu") is the host.
DEVICE = torch.device("cpu", 0)

#: What gives numbers, or shapes that depend on numbers, and so waits for them.
WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
#: Of the functions of Python, those that C++ would do on the stand-in without asking it.
MADE_OF_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
NUMBERS_OF = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


class OnDevice(Tensor):
    """A tensor on the device; its numbers lie in ``elem``. It can be used within ``counted`` only."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem):
        about = {"strides": elem.stride(), "storage_offset": elem.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls, elem.shape, dtype=elem.dtype, device=DEVICE, **about
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        raise AssertionError(f"{op} on the device, outside of counted()")

    def __deepcopy__(self, memo):
        new = memo[id(self)] = OnDevice(self.elem.clone())
        return nn.Parameter(new, self.requires_grad) if isinstance(self, nn.Parameter) else new

    def __repr__(self):
        return f"OnDevice({self.elem})"


class Generator(torch.Generator):
    """Draws on the device."""

    device = DEVICE


class _Operations(TorchDispatchMode):
    """Does every operation, and notes those that wait."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), op.overloadpacket.__name__
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        ours = [a for a in given if isinstance(a, OnDevice)]
        hosts = [a for a in given if not isinstance(a, OnDevice)]
        asked = kwargs.get("device")
        if asked == DEVICE:
            kwargs["device"] = torch.device("cpu")
        here = bool(ours) if asked is None else asked == DEVICE
        if _waits(name, args, ours, hosts, asked):
            self.found.append(str(op))
        elif ours and any(a.ndim for a in hosts):
            raise AssertionError(f"{op} mixes tensors of the device and of the host")
        op = _with_memory(op)
        plain, options = tree_map(_numbers, (args, kwargs))
        out = op(*plain, **options)
        known = {id(_numbers(a)): a for a in given}  # what is changed in place stays itself

        def place(a):
            return known.get(id(a)) if id(a) in known else OnDevice(a)

        return tree_map_only(Tensor, place, out) if here else out


def _with_memory(op):
    """Zeros in place of what forward mode takes for them, which has no memory."""
    known = op.overloadpacket is torch.ops.aten._efficientzerotensor
    return torch.ops.aten.zeros.default if known else op


def _numbers(a):
    return a.elem if isinstance(a, OnDevice) else a


def _waits(name, args, ours, hosts, asked):
    if name in WAITING:
        return bool(ours)
    if name in INDEXING and ours:  # stricter than CUDA, which fills where a mask is given a number
        index = [a for a in args[1] if a is not None]
        return any(
            not isinstance(a, OnDevice) or a.dtype in (torch.bool, torch.uint8) for a in index
        )
    if name == "_to_copy" and asked is not None:
        return bool(hosts) if asked == DEVICE else bool(ours)
    if name in ("copy_", "_foreach_copy_", "where"):  # a number of the host is copied first
        return bool(ours and hosts)
    return name == "repeat_interleave" and bool(ours)


class _Functions(TorchFunctionMode):
    """Notes what goes between Python's numbers and the device."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        of_ours = bool(args) and isinstance(args[0], OnDevice)
        if function in NUMBERS_OF and of_ours:
            self.found.append(function.__name__)
            return function(args[0].elem, *args[1:], **kwargs)
        made_there = kwargs.get("device") == DEVICE or (function is Tensor.new_tensor and of_ours)
        if function in MADE_OF_NUMBERS and made_there:
            self.found.append(function.__name__)
            kwargs["device"] = torch.device("cpu")
            return OnDevice(function(*map(_numbers, args), **kwargs))
        return function(*args, **kwargs)


@contextmanager
def counted():
    """Within the block DEVICE works; gives the list of what waited for it."""
    found, before = [], torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(
        True
    )  # model.to(DEVICE) makes new ones
    try:
        with _Operations(found), _Functions(found):
            yield found
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


# ---------------------------------------------------------------- a graph


class TapeGraph:
    """Records the operations of a function, and does them again on the same tensors: as a CUDA graph, it never calls the
    function again, and keeps Python's numbers as they were."""

    device = torch.device("cpu")

    def __init__(self):
        self.tape, self.log, self.is_done = [], [], False

    def warm_up(self, function):
        self.log.append("warm up")
        function()

    def capture(self, function):
        self.log.append("capture")
        with _Tape(self.tape):
            function()
        self.is_done = True  # CUDA only records: here the first replay has nothing to do

    def replay(self):
        self.log.append("replay")
        if self.is_done:
            self.is_done = False
            return
        with torch.no_grad():
            for op, args, kwargs, made in self.tape:
                again = [a for a in tree_leaves(op(*args, **kwargs)) if isinstance(a, Tensor)]
                for old, new in zip(made, again) if made else ():
                    old.copy_(new)


class _Tape(TorchDispatchMode):
    def __init__(self, tape):
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        op = _with_memory(op)
        out = op(*args, **(kwargs or {}))
        given = [a for a in tree_leaves((args, kwargs or {})) if isinstance(a, Tensor)]
        memory = {a.untyped_storage().data_ptr() for a in given}
        made = [a for a in tree_leaves(out) if isinstance(a, Tensor)]
        if any(a.untyped_storage().data_ptr() in memory for a in made):
            made = []  # a view, or changed in place
        self.tape.append((op, args, kwargs or {}, made))
        return out
