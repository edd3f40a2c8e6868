"""``FlowMap``: a network on the line and a path give velocity, integral, jump and denoiser in the path's own terms."""

from __future__ import annotations

import json
from pathlib import Path as FilePath

import torch
from torch import Tensor, nn

from .io import read_checked, sha256, write_together
from .networks import NETWORKS
from .paths import PATHS, Path, expand
from .utils import Compiled

FORMAT = 1


class FlowMap(nn.Module):
    """A network that returns the average velocity ``u(x, t, s)`` on the line, seen through a path.

    Written with ``v`` the velocity of the probability-flow ODE and the trajectory through ``x_t``,

        integral G(x_t; t -> s) = int_s^t v(x_r, r) dr = (t - s) * average_velocity,
        jump       x_s = x_t - G(x_t; t -> s)          (one network call; s = 0 generates in one step).

    The boundary ``jump(x, t, t) == x`` is exact by construction. All methods take and return tensors in the path's
    own scale and clock: x (B, ...), t and s (B,), with ``0 <= s <= t <= t_max`` (ValueError otherwise).

    net: any module with the call ``net(x_line, tau_t, tau_s)`` and an attribute ``data_shape``, the shape of one example;
    with an attribute ``anchor`` that is true it is also given ``anchor=``, with ``classes`` > 0 ``labels=``; path: see
    ``iflow_lib.paths``.
    """

    def __init__(self, net: nn.Module, path: Path):
        super().__init__()
        if not isinstance(path, Path):
            raise ValueError(
                f"path must be a path such as RectifiedFlow(), got {type(path).__name__}"
            )
        self.net, self.path = net, path

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one example, as the network states it."""
        return tuple(self.net.data_shape)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

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
        """The network itself: average velocity on the line, shape of x_line. Objectives and samplers call this.

        anchor: (B, ...) for an anchored network; labels: classes (B,), -1 where unknown, for a network with classes, and
        ignored by one without. Raises ValueError if the network returns another shape.
        """
        given = {"anchor": anchor, "labels": labels if self.classes else None}
        out = self.net(
            x_line,
            tau_t,
            tau_s,
            **{name: value for name, value in given.items() if value is not None},
        )
        if out.shape != x_line.shape:
            raise ValueError(
                f"the network {type(self.net).__name__} returned shape {tuple(out.shape)} for x of shape "
                f"{tuple(x_line.shape)}: it must return an average velocity of the same shape"
            )
        return out

    def compile(self, **options) -> None:
        """Run the network under ``torch.compile`` from now on, in ``sample`` too: compiled at its first call, and again
        for another batch size or precision. Where that fails it goes on as it was, with a warning of one line. Pays
        back after many samples. options: of ``torch.compile``. Copies and saved models are not compiled."""
        self._compiled_call_impl = Compiled(
            self._call_impl, **options
        )  # where torch keeps it, and drops it from copies

    def jump(
        self,
        *,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Solution at time ``s`` of the ODE through ``(x, t)``, in one network call. Shape of x."""
        self._check(x, t, s)
        (x_line, tau_t), tau_s = self.path.to_line(x, t), self.path.tau(s)
        moved = expand(self.path.scale(s) * (tau_t - tau_s), x) * self(
            x_line, tau_t, tau_s, anchor, labels
        )
        # x / scale(t) * scale(s), arranged so that s == t returns x bit for bit: the ratio is then exactly 1
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
        """``G(x; t -> s) = x - jump``: the integral of the velocity from s to t along the trajectory through x."""
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
        """``G / (t - s)``; where s == t, its limit, the velocity."""
        span, known = expand(t - s, x), {"anchor": anchor, "labels": labels}
        mean = self.integral(x=x, t=t, s=s, **known) / torch.where(
            span > 0, span, torch.ones_like(span)
        )
        return (
            torch.where(span > 0, mean, self.velocity(x=x, t=t, **known))
            if bool((t == s).any())
            else mean
        )

    def velocity(
        self, *, x: Tensor, t: Tensor, anchor: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """``v(x, t) = alpha'(t) x_0 + sigma'(t) z`` at the network's own estimates of ``x_0`` and ``z``."""
        x_0, z = self._ends(x, t, anchor, labels)
        return expand(self.path.alpha_dot(t), x) * x_0 + expand(self.path.sigma_dot(t), x) * z

    def denoise(
        self, *, x: Tensor, t: Tensor, anchor: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """``E[x_0 | x_t]`` as the instantaneous velocity implies it: the end of the tangent, not of the trajectory."""
        return self._ends(x, t, anchor, labels)[0]

    def _ends(
        self, x: Tensor, t: Tensor, anchor: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """On the line the velocity is ``E[z - x_0 | x]``, so both ends of the tangent follow from it."""
        self._check(x, t, t)
        x_line, tau = self.path.to_line(x, t)
        v = self(x_line, tau, tau, anchor, labels)
        return x_line - expand(tau, x) * v, x_line + expand(1 - tau, x) * v

    def _check(self, x: Tensor, t: Tensor, s: Tensor) -> None:
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
        self, folder, *, card: str | None = None, dtype: torch.dtype | None = None, **info
    ) -> None:
        """Write ``model.safetensors``, ``config.json`` and, if given, the model card ``README.md`` into ``folder``.

        Safetensors and JSON only; each file is written whole or not at all. dtype: store weights as, for example,
        ``torch.float16``; info: JSON values kept in the configuration. Raises OSError if the folder cannot be written.
        """
        save(self, folder, card=card, dtype=dtype, info=info)

    @classmethod
    def from_pretrained(cls, folder, *, device="cpu") -> FlowMap:
        """Load what ``save_pretrained`` wrote. Raises FileNotFoundError if a file is missing and ValueError if one is
        damaged or was changed (``config.json`` holds checksums of both) or names an unknown network or path. Where a
        model of this package is missing, the error says how to train it, and how long that takes."""
        return load(cls, folder, device=device)


def _config_digest(config: dict) -> str:
    """Of everything in ``config.json`` but this digest, whatever its layout in the file."""
    rest = {key: value for key, value in config.items() if key != "config_sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode())


def save(model, folder, *, card: str | None, dtype: torch.dtype | None, info: dict) -> None:
    from safetensors.torch import save as to_bytes

    net = model.net
    if NETWORKS.get(type(net).__name__) is not type(net):
        raise ValueError(
            f"only {', '.join(NETWORKS)} can be saved, not {type(net).__name__}; save its state yourself"
        )
    state = {
        k: v.detach().cpu().to(dtype if v.is_floating_point() else None).contiguous()
        for k, v in net.state_dict().items()
    }
    weights = to_bytes(state)
    config = {
        "format": FORMAT,
        "network": {"name": type(net).__name__, **net.config()},
        "path": {"name": model.path.name, **model.path.config()},
        "sha256": sha256(weights),
        "info": info,
    }
    config["config_sha256"] = _config_digest(config)
    text = (
        json.dumps(config, indent=2) + "\n"
    )  # before anything is written: info that is not JSON fails here
    folder = FilePath(folder)
    files = {folder / "model.safetensors": weights, folder / "config.json": text}
    if card is not None:
        files[folder / "README.md"] = card
    write_together(files)


def read_config(folder) -> dict:
    """The checked ``config.json`` of a saved model."""
    file = FilePath(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no model in {folder}: {file.name} is missing; expected a folder from save_pretrained"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']} is not {FORMAT}")
        config["network"]["name"], config["path"]["name"], config["sha256"]
        if config["config_sha256"] != _config_digest(config):
            raise ValueError("it was changed after it was written")
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is damaged or not a model's configuration ({why})") from error
    return config


def load(cls, folder, *, device="cpu"):
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    config = read_config(folder)
    weights = read_checked(FilePath(folder) / "model.safetensors", config["sha256"])
    parts = []
    for kind, known in (("network", NETWORKS), ("path", PATHS)):
        arguments = dict(config[kind])
        name = arguments.pop("name")
        if name not in known:
            raise ValueError(
                f"{folder} names an unknown {kind} {name!r}; this version knows {', '.join(known)}"
            )
        try:
            parts.append(known[name](**arguments))
        except TypeError as error:
            raise ValueError(
                f"{folder} has arguments that {name} does not take: {error}"
            ) from error
    model = cls(*parts)
    try:
        model.net.load_state_dict({k: v.float() for k, v in from_bytes(weights).items()})
    except (RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:120]  # torch lists every tensor on a line of its own
        raise ValueError(
            f"{folder}: the weights do not fit the network in config.json ({why}...)"
        ) from error
    return model.to(device).eval()
