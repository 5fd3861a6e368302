"""Zoos on the Hugging Face hub: push one as a data set, pull one whole or its tables first."""

from __future__ import annotations

from zoarium.zoo.hub.origin import Origin
from zoarium.zoo.hub.pull import download_weights, from_hub
from zoarium.zoo.hub.push import Pushed, push_to_hub

__all__ = ["Origin", "Pushed", "download_weights", "from_hub", "push_to_hub"]
