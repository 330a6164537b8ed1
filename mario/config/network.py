"""The settings of the network and of its computation."""

from __future__ import annotations

from typing import Literal

from mario.config.section import NonNegativeInt, Section


class NetworkConfig(Section):
    """The network and how it is computed; the precision changes speed, hardly the result."""

    features: Literal["nature", "small", "tiny"] = "nature"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: NonNegativeInt = 0
