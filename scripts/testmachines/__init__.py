"""Test machines: Debian with systemd as PID 1 on an overlay of its own, reached over SSH only.

Standard library only, so that ``scripts/machine`` works before the virtual environment exists.
"""
