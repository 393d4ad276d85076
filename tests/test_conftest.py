"""The guards of the test suite guard."""

import importlib
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from shape_checks import checked

import calibrune.pruners
from calibrune.errors import ConfigError


def test_a_connection_to_elsewhere_fails_and_names_the_address():
    with socket.socket() as connection, pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        connection.connect(("192.0.2.1", 80))


def test_a_connection_to_this_machine_is_let_through():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        assert connection.getpeername() == server.getsockname()


def test_the_cache_is_not_the_users(own_cache):
    assert own_cache == Path(os.environ["CALIBRUNE_CACHE"])


HOOKED = '''
"""A module of a room, with a shape in a signature."""
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from calibrune.settings import settings


@runtime_checkable
class Shaped(Protocol):
    def double(self, x: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]: ...


@settings
class Doubler:
    by: float = 2

    def double(self, x: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return x * self.by


@settings
class Holder:
    shaped: Shaped


def add(x: Float[Tensor, "out in"], y: Float[Tensor, "in"]) -> Float[Tensor, "out in"]:
    return x + y


def forget_the_rows(x: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    return x.sum(dim=0)
'''


@pytest.fixture
def hooked(tmp_path, monkeypatch):
    # a new method in the room of the pruners, imported late, as the rooms are
    (tmp_path / "planted.py").write_text(HOOKED)
    monkeypatch.setattr(calibrune.pruners, "__path__", [*calibrune.pruners.__path__, str(tmp_path)])
    yield importlib.import_module("calibrune.pruners.planted")
    del sys.modules["calibrune.pruners.planted"]
    del calibrune.pruners.planted


def test_a_wrong_shape_is_caught(hooked):
    assert hooked.add(torch.ones(2, 3), torch.ones(3)).tolist() == [[2.0] * 3] * 2
    with pytest.raises(TypeError, match="in"):
        hooked.add(torch.ones(2, 1), torch.ones(3))  # torch itself would broadcast
    with pytest.raises(TypeError):
        hooked.forget_the_rows(torch.ones(2, 3))


def test_a_function_made_inside_another_is_not_wrapped_anew_at_every_call():
    def inner(x: int) -> int:
        return x

    assert checked(inner) is inner


def test_settings_and_protocols_live_with_the_hook(hooked):
    assert hooked.Doubler(by=3).double(torch.ones(1, 1)).item() == 3
    assert hooked.Holder(shaped=hooked.Doubler()).shaped == hooked.Doubler(by=2.0)
    assert TypeAdapter(hooked.Doubler).validate_python({"by": "4"}) == hooked.Doubler(by=4)
    with pytest.raises(TypeError):
        hooked.Doubler().double(torch.ones(3))


def test_a_wrong_setting_is_answered_by_us_and_not_by_the_hook(hooked):
    with pytest.raises(ConfigError, match="Doubler: by cannot be 'x'"):
        hooked.Doubler(by="x")
    with pytest.raises(ConfigError, match="Holder: shaped cannot be 3"):
        hooked.Holder(shaped=3)
