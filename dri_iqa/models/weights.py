"""Weights named in a configuration (hub, safetensors file or none), and seeded construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dri_iqa.config import ConfigError
from dri_iqa.seeds import Purpose, seed_of

RANDOM = ("none", "random")
"""The words for weights that are drawn from the run's seed."""

_CHOICES = "`pretrained` (the hub), a path or s3:// URI of a safetensors file, or `{word}` (random)"


@contextmanager
def seeded(run_seed: int, part: int) -> Iterator[None]:
    """Inside, torch's CPU generator yields the initial weights of one part; outside nothing
    changes.

    Args:
        run_seed: seed of the run.
        part: number of the part, so that parts do not depend on which others are built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(run_seed, Purpose.INIT, part))
        yield


def read_safetensors(uri: str, key: str) -> dict[str, Tensor]:
    """The tensors of a local or s3:// safetensors file.

    Args:
        uri: where it lies.
        key: the configuration key that named it, for messages.

    Raises:
        ConfigError: it cannot be read, or is no safetensors file.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    from dri_iqa.storage import read_bytes

    try:
        return safetensors.torch.load(read_bytes(uri))
    except SafetensorError as error:
        raise ConfigError(f"{key}={uri} is no safetensors file: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}={uri} cannot be read ({error}); {choices(key)}") from None


def choices(key: str) -> str:
    """What a weights key accepts, for messages."""
    word = "none" if key.startswith("backbone") else "random"
    return f"{key} takes {_CHOICES.format(word=word)}"


def from_hub(
    load: Callable[[], nn.Module | Mapping[str, Tensor]], key: str
) -> nn.Module | Mapping[str, Tensor]:
    """Run a download, turning every way it can fail into one that names the three choices.

    Raises:
        ConfigError: the hub cannot be reached or does not hold these weights.
    """
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:  # hubs raise their HTTP client's, urllib's and their own errors
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ConfigError(
            f"{key}=pretrained could not be loaded from the hub ({reason}); {choices(key)}"
        ) from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        ConfigError: a tensor is missing, unknown or of another shape; names the first.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise ConfigError(f"{what} has no tensor {name}: it belongs to another architecture")
        if state[name].shape != tensor.shape:
            raise ConfigError(
                f"{what}: {name} has shape {tuple(state[name].shape)}, "
                f"this configuration needs {tuple(tensor.shape)}"
            )
    unknown = [name for name in state if name not in own]
    if unknown:
        raise ConfigError(f"{what} has a tensor {unknown[0]} that this configuration does not")
    module.load_state_dict(state)
