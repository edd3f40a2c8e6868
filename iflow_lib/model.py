"""``FlowMap``: a network and a path give velocity, integral and jump in the path's own terms."""

from __future__ import annotations

import inspect
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from . import hub, pretrained
from .paths import Path, check_path, expand
from .scaling import Standardization
from .utils import Compiled, check_int, pick_device


class FlowMap(nn.Module):
    """A network that returns the average velocity ``u(x, t, s)`` on the line, seen through a path.

    Written with ``v`` the velocity of the probability-flow ODE and the trajectory through ``x_t``,

        integral G(x_t; t -> s) = int_s^t v(x_t', t') dt' = (t - s) * average_velocity,
        jump       x_s = x_t - G(x_t; t -> s)      (one network call; s = 0 generates in one step).

    The boundary ``jump(x, t, t) == x`` is exact by construction. All methods take and return
    tensors in the path's own scale and clock: x (B, ...), t and s (B,), ``0 <= s <= t <= t_max``.

    Args:
        net: A module with the call ``net(x_line, tau_t, tau_s)`` and an attribute ``data_shape``,
            the shape of one example. With an attribute ``anchor`` that is true it is also given
            ``anchor=``, with ``classes`` > 0 ``labels=``; see ``iflow_lib.networks``.
        path: A path, such as ``RectifiedFlow()``.

    Attributes:
        learned: What the network was trained for, which decides what ``sample`` does by default:
            "velocity", "jump" (between any two times), "jump_to_data", "refinement" (of an anchor),
            or None where nobody said. ``fit`` sets it.
        scaling: How the data were standardized before training, or None. ``fit`` takes it from the
            data and ``sample`` undoes it.
        knows_no_class: Whether a network with classes has also learned what to do without one, as
            guidance and sampling without labels need; None where nobody said. ``fit`` sets it.

    Raises:
        ValueError: If net is not such a module, path is not a path, or a method of it is wrong.
    """

    def __init__(self, net: nn.Module, path: Path) -> None:
        super().__init__()
        for name, value, kind, example in (
            ("net", net, nn.Module, "a network such as MLP(dim=2)"),
            ("path", path, Path, "a path such as RectifiedFlow()"),
        ):
            if not isinstance(value, kind):
                given = (
                    f"the class {value.__name__}"
                    if inspect.isclass(value)
                    else type(value).__name__
                )
                raise ValueError(f"{name} must be {example}, got {given}")
        _check_network(net)
        check_path(path, net.data_shape)  # type: ignore[arg-type]
        self.net, self.path = net, path
        self.learned: str | None = None
        self.scaling: Standardization | None = None
        self.knows_no_class: bool | None = None

    def extra_repr(self) -> str:
        """Return what ``print`` shows above the network's layers."""
        said = {"path": self.path, "data_shape": self.data_shape, "learned": self.learned}
        return "\n".join(
            [*(f"{k}={v!r}" for k, v in said.items()), f"parameters={self.parameter_count:,}"]
        )

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one example, as the network states it."""
        return tuple(int(side) for side in self.net.data_shape)  # type: ignore[union-attr]

    @property
    def parameter_count(self) -> int:
        """Number of the network's parameters."""
        return sum(p.numel() for p in self.net.parameters())

    @property
    def compiled(self) -> bool:
        """Whether the model runs under ``torch.compile``."""
        return any(part._compiled_call_impl is not None for part in (self, self.net))

    @property
    def anchored(self) -> bool:
        """Whether the network takes an anchor, an estimate of x_0."""
        return bool(getattr(self.net, "anchor", False))

    @property
    def classes(self) -> int:
        """Number of classes the network knows, 0 for none."""
        return int(getattr(self.net, "classes", 0))

    def forward(
        self,
        x_line: Tensor,
        tau_t: Tensor,
        tau_s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Call the network itself, as objectives and samplers do.

        Args:
            x_line: Points on the line, (B, ...).
            tau_t: Their line times, (B,).
            tau_s: Target line times, (B,).
            anchor: An estimate of x_0, (B, ...), for an anchored network.
            labels: Classes (B,), -1 where unknown, for a network with classes, which is given -1
                for all where there are none; a network without classes ignores them.

        Returns:
            The average velocity on the line, shape of x_line.

        Raises:
            ValueError: If the network returns anything but a real tensor of that shape.
        """
        if not self.classes:
            labels = None
        elif labels is None:
            labels = torch.full(x_line.shape[:1], -1, device=x_line.device)
        keywords = {"anchor": anchor, "labels": labels}
        out = self.net(
            x_line,
            tau_t,
            tau_s,
            **{name: value for name, value in keywords.items() if value is not None},
        )
        if not isinstance(out, Tensor) or out.is_complex():
            given = f"a {out.dtype}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise ValueError(
                f"the network {type(self.net).__name__} returned {given}: its forward must return the average "
                "velocity alone, a real tensor of the shape of x"
            )
        if out.shape != x_line.shape:
            raise ValueError(
                f"the network {type(self.net).__name__} returned shape {tuple(out.shape)} for x of shape "
                f"{tuple(x_line.shape)}: it must return an average velocity of the same shape"
            )
        return out

    def compile(self, **options: Any) -> None:
        """Run the network under ``torch.compile`` from now on, in ``sample`` too.

        It is compiled at its first call, and again for another batch size or precision; where that
        fails, it goes on as it was, with a warning of one line. It pays back after many samples.
        Copies and saved models are not compiled.

        Args:
            **options: Of ``torch.compile``.
        """
        # where torch keeps it, and drops it from copies
        self._compiled_call_impl = Compiled(self._call_impl, **options)

    def jump(
        self,
        *,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Follow the ODE from (x, t) to time s, in one network call.

        Args:
            x: Points ``x_t``, (B, ...).
            t: Their times, (B,).
            s: Target times, (B,), ``0 <= s <= t <= t_max``.
            anchor: An estimate of x_0, shape of x, for an anchored network.
            labels: Classes, (B,), for a network with classes.

        Returns:
            The points ``x_s``, shape of x; where s == t, x bit for bit.

        Raises:
            ValueError: If a shape or a type is wrong, or a time is not on the path.
        """
        self._check(x, t, s)
        (x_line, tau_t), tau_s = self.path.to_line(x, t), self.path.tau(s)
        u = self(x_line, tau_t, tau_s, anchor, labels)
        moved = expand(self.path.scale(s) * (tau_t - tau_s), x) * u
        # x / scale(t) * scale(s), so arranged that the ratio is 1 and x is kept where s == t
        return expand(self.path.scale(s) / self.path.scale(t), x) * x - moved

    def integral(
        self,
        *,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return ``G(x; t -> s) = x - jump``, the integral of the velocity from s to t.

        It goes along the trajectory through x. Arguments and errors are those of ``jump``; the
        result has the shape of x.
        """
        return x - self.jump(x=x, t=t, s=s, anchor=anchor, labels=labels)

    def average_velocity(
        self,
        *,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return ``G / (t - s)`` and, where s == t, its limit, the velocity.

        Arguments and errors are those of ``jump``; the result has the shape of x.
        """
        self._check(x, t, s)
        span = expand(t - s, x)
        moves = span > 0
        mean = self.integral(x=x, t=t, s=s, anchor=anchor, labels=labels)
        mean = mean / torch.where(moves, span, torch.ones_like(span))
        if not bool((t == s).any()):
            return mean
        return torch.where(moves, mean, self.velocity(x=x, t=t, anchor=anchor, labels=labels))

    def velocity(
        self, *, x: Tensor, t: Tensor, anchor: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Return the velocity of the probability-flow ODE.

        ``v(x, t) = alpha'(t) x_0 + sigma'(t) z`` at the network's own estimates of ``x_0`` and
        ``z``.

        Args:
            x: Points ``x_t``, (B, ...).
            t: Their times, (B,).
            anchor: An estimate of x_0, shape of x, for an anchored network.
            labels: Classes, (B,), for a network with classes.

        Returns:
            The velocity in the path's own scale and clock, shape of x.

        Raises:
            ValueError: If a shape or a type is wrong, or a time is not on the path.
        """
        x_0, z = self._ends(x, t, anchor, labels)
        return expand(self.path.alpha_dot(t), x) * x_0 + expand(self.path.sigma_dot(t), x) * z

    def denoise(
        self, *, x: Tensor, t: Tensor, anchor: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Return ``E[x_0 | x_t]`` as the velocity implies it.

        It is the end of the tangent, not of the trajectory. Arguments and errors are those of
        ``velocity``; the result has the shape of x.
        """
        return self._ends(x, t, anchor, labels)[0]

    def _ends(
        self, x: Tensor, t: Tensor, anchor: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return both ends of the tangent."""
        self._check(x, t, t)
        # on the line the velocity is E[z - x_0 | x], so they follow from it
        x_line, tau = self.path.to_line(x, t)
        v = self(x_line, tau, tau, anchor, labels)
        return x_line - expand(tau, x) * v, x_line + expand(1 - tau, x) * v

    def _check(self, x: Tensor, t: Tensor, s: Tensor) -> None:
        for name, value in (("x", x), ("t", t), ("s", s)):
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"{name} must be a tensor, got {type(value).__name__}: x are points (B, ...), t and s "
                    "times (B,), such as torch.full((len(x),), 1.0)"
                )
        weights = next(self.parameters(), None)
        dtype = torch.promote_types(x.dtype, torch.promote_types(t.dtype, s.dtype))
        autocast = torch.is_autocast_enabled(x.device.type)
        if weights is not None and dtype != weights.dtype and not autocast:
            raise ValueError(
                f"x, t and s must have the type of the weights, {weights.dtype}; got {x.dtype}, {t.dtype} "
                f"and {s.dtype}: give x.to({weights.dtype}), or model.double() for more digits"
            )
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(
                f"x must have shape (B, {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}"
            )
        if t.shape != x.shape[:1] or s.shape != x.shape[:1]:
            raise ValueError(
                f"times must have shape ({len(x)},), got t {tuple(t.shape)} and s {tuple(s.shape)}"
            )
        self.path.check_times(t, s)

    # ------------------------------------------------------------------ files
    def save_pretrained(
        self,
        folder: str | PathLike[str],
        *,
        card: str | None = None,
        dtype: torch.dtype | None = None,
        **info: Any,
    ) -> None:
        """Write the model into a folder, as ``model.safetensors`` and ``config.json``.

        The classes of the network and of the path must be registered, as ours are: a class of your
        own is decorated with ``@ifl.register_network`` or ``@ifl.register_path``. Each file is
        written whole or not at all.

        Args:
            folder: Where the files go; it is made if it is missing.
            card: Text of a model card, ``README.md``.
            dtype: Type in which floats are stored, such as ``torch.float16``; None keeps theirs.
            **info: JSON values that are kept in ``config.json``.

        Raises:
            ValueError: If a class is not registered, its ``config()`` does not build it again, or
                info is not JSON.
            OSError: If the folder cannot be written.
        """
        pretrained.save(
            folder,
            self.net,
            self.path,
            learned=self.learned,
            scaling=self.scaling,
            knows_no_class=self.knows_no_class,
            card=card,
            dtype=dtype,
            info=info,
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | None = None,
    ) -> FlowMap:
        """Load what ``save_pretrained`` wrote, or ``push_to_hub`` sent.

        Args:
            folder: The folder; or ``user/model``, a repository of a hub, where no such folder is
                here. Only safetensors and JSON are fetched, all of one commit.
            device: Where the model goes.
            revision: For a repository: a commit, tag or branch. None takes the newest commit, and a
                warning names it.
            token: For a private repository; None takes the one that ``hf auth login`` keeps.

        Returns:
            The model in float32, in evaluation mode.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or was changed (``config.json`` holds checksums of
                both), names a class that is not registered, or the device is not there.
            OSError: If a repository cannot be fetched.
            ImportError: If it is one and huggingface_hub is missing, of the extra ``hub``.
        """
        device = pick_device(device)
        folder = hub.local_folder(folder, revision, token)
        net, path, learned, scaling, knows_no_class = pretrained.load(folder)
        model = cls(net, path)
        model.learned, model.scaling, model.knows_no_class = learned, scaling, knows_no_class
        return model.to(device).eval()

    def push_to_hub(
        self,
        name: str,
        *,
        manifest: dict[str, Any] | None = None,
        card: str | None = None,
        license: str | None = None,
        private: bool = True,
        token: str | None = None,
        branch: str | None = None,
        **info: Any,
    ) -> str:
        """Send the model to a hub, as ``save_pretrained`` writes it, with a card.

        Args:
            name: The repository, ``user/model``; it is made if it is missing.
            manifest: Of its training, ``run.manifest``. It is told on the card, and kept in
                ``config.json`` without the folders that it names.
            card: Text of the card in place of the one that is made.
            license: By the hub's short name, such as "mit".
            private: Whether a new repository is seen by its owner alone. A model may tell of its
                data: think before you give False.
            token: None takes the one that ``hf auth login`` keeps.
            branch: None is the main one.
            **info: JSON values that are kept in ``config.json``.

        Returns:
            The address of the commit, which ends in its number: the ``revision`` to load.

        Raises:
            ValueError: As ``save_pretrained``; or if the name is none.
            OSError: If the hub refuses, or cannot be reached.
            ImportError: If huggingface_hub is missing, of the extra ``hub``.
        """
        if manifest is not None:
            manifest = info["manifest"] = hub.without_places(manifest)
        use = (
            f'model = ifl.FlowMap.from_pretrained("{name}", revision="...")\n'
            f"x = ifl.sample(model, n=64{', nfe=32' if self.learned == 'velocity' else ''}).x"
        )
        text = card or hub.card(name, self.facts(), manifest, use=use, license=license)
        return hub.push(
            lambda folder: self.save_pretrained(folder, card=text, **info),
            name,
            private=private,
            token=token,
            branch=branch,
        )

    def facts(self) -> dict[str, Any]:
        """Return what a card says of the model, by name."""
        return {
            "learned": hub.LEARNED.get(self.learned or "", "not recorded"),
            "path": repr(self.path),
            "network": f"{type(self.net).__name__}, {self.parameter_count:,} parameters",
            "one sample": f"shape {self.data_shape}"
            + f", {self.classes} classes" * bool(self.classes),
        }


def writes_into_input(net: nn.Module) -> ValueError:
    """Return the error about a network that changes what it is given."""
    return ValueError(
        f"the network {type(net).__name__} writes into its input: forward must leave x, t and s as they are, "
        "so write x = x * 2 in place of x *= 2"
    )


def _check_network(net: nn.Module) -> None:
    """Raise ValueError unless a network says what it takes."""
    name = type(net).__name__
    if isinstance(net, FlowMap):
        raise ValueError("net is a FlowMap already: give its network, model.net")
    if hasattr(net, "_orig_mod"):  # asking for its class would import the compiler
        raise ValueError(
            "net is compiled already, and could not be saved: give the network itself, and call "
            "model.compile(), or train with TrainConfig(compile=True)"
        )
    if not hasattr(net, "data_shape"):
        raise ValueError(
            f"the network {name} has no data_shape: set self.data_shape, the shape of one example, such as (3,)"
        )
    shape = net.data_shape
    try:
        sides = [check_int("a side", side) for side in shape]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        sides = []
    if not sides:
        raise ValueError(
            f"data_shape of the network {name} must be the shape of one example, positive whole numbers such "
            f"as (3,) or (1, 28, 28); got {shape!r}"
        )
    classes = getattr(net, "classes", 0)
    try:
        check_int("classes", classes, 0)
    except ValueError:
        raise ValueError(
            f"classes of the network {name} must be the number of classes, 0 for none; got {classes!r}"
        ) from None
