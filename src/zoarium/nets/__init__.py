"""Architectures: the registry of nets, and networks stacked so that many run as one."""

from zoarium.nets.check import check_net
from zoarium.nets.layout import Layout
from zoarium.nets.registry import NETS, build, net
from zoarium.nets.stacked import StackedNet, stack

__all__ = ["NETS", "Layout", "StackedNet", "build", "check_net", "net", "stack"]
