"""Tests of a guest by labgrid: pytest --lg-env guest.yaml test_guest.py

DRIVER_SAYS in the environment is what the kernel's log has of the driver of an assigned device.
"""

import os
import shlex

import pytest


@pytest.fixture
def shell(target):
    """A shell in the guest, which is booted for all tests together."""
    return target.get_driver("ShellDriver")


def lines(shell, command):
    """What a command prints. The board's terminal ends lines, as the guest's has done: CR CR LF."""
    return [line.rstrip("\r") for line in shell.run_check(command)]


def test_the_guest_runs_commands(shell):
    assert lines(shell, "echo $((6 * 7))") == ["42"]


def test_a_command_that_fails_is_told(shell):
    _, _, status = shell.run("exit_status() { return 3; }; exit_status")
    assert status == 3


@pytest.mark.skipif("DRIVER_SAYS" not in os.environ, reason="no device is looked for")
def test_the_driver_has_taken_the_device(shell):
    says = os.environ["DRIVER_SAYS"]
    assert says in "".join(lines(shell, f"dmesg | grep -F {shlex.quote(says)}"))
