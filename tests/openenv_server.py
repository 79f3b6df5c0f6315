"""Servers of OpenEnv for tests, each an app of openenv-core: ``python openenv_server.py <port, 0 for any>`` prints the port."""

import base64
import random
import socket
import sys
import time
from typing import Literal

import uvicorn
from fastapi import FastAPI
from fastmcp import FastMCP
from openenv.core.env_server import (
    Action,
    CallToolAction,
    CallToolObservation,
    Environment,
    MCPEnvironment,
    Observation,
    State,
    create_app,
)
from pydantic import Field


class Text(Observation):
    text: str


class Plain(Environment):
    """Environment without a state that is worth asking for."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    @property
    def state(self):
        return State()


class Message(Action):
    message: str


class Echoed(Observation):
    echoed_message: str
    message_length: int


class Echo(Plain):
    def reset(self, seed=None, episode_id=None, **columns):
        return Echoed(echoed_message=f"ready {seed} {sorted(columns.items())}", message_length=0)

    def step(self, action, timeout_s=None, **kwargs):
        if action.message == "raise":
            raise RuntimeError("it broke")
        if action.message == "hang":
            time.sleep(3)
        return Echoed(
            echoed_message=action.message, message_length=len(action.message), reward=len(action.message) / 10
        )


class Guess(Action):
    number: int


class Guessing(Plain):
    """A number to guess, of a range that the task gives."""

    def reset(self, seed=None, episode_id=None, high: int = 9):
        self.number, self.left = random.Random(seed).randint(0, high), 4
        return Text(text=f"Guess a number from 0 to {high}.")

    def step(self, action, timeout_s=None, **kwargs):
        self.left -= 1
        if action.number == self.number:
            return Text(text="Right.", reward=1.0, done=True)
        hint = "higher" if action.number < self.number else "lower"
        return Text(text=f"It is {hint}.", reward=-0.1, done=self.left == 0)


class Alone(Guessing):
    SUPPORTS_CONCURRENT_SESSIONS = False


class Move(Action):
    piece: Literal["rook", "king"]
    squares: int = Field(ge=1)
    note: str = ""


class Board(Plain):
    def reset(self, seed=None, episode_id=None):
        return Text(text="Your move.")

    def step(self, action, timeout_s=None, **kwargs):
        return Text(text=f"{action.piece} {action.squares}", reward=True)


class Turn(Action):
    way: Literal["left", "right"]


class Camera(Observation):
    caption: str
    screen: list[int] = Field(default_factory=list)
    frame: str = ""


class Seeing(Plain):
    def reset(self, seed=None, episode_id=None, encoded=False):
        if encoded:
            return Camera(caption="a wall", frame="data:image/png;base64," + base64.b64encode(b"\x89PNG").decode())
        return Camera(caption="a wall", screen=[0] * 2000)

    def step(self, action, timeout_s=None, **kwargs):
        return Camera(caption=f"after {action.way}", screen=[1] * 2000)


class Tools(MCPEnvironment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        server = FastMCP("tools")

        @server.tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        super().__init__(server)

    def reset(self, seed=None, episode_id=None, **kwargs):
        return Observation()

    def _step_impl(self, action, timeout_s=None, **kwargs):
        return Observation()

    @property
    def state(self):
        return State()


class Broken(Plain):
    def __init__(self):
        raise RuntimeError("no licence")

    reset = step = None


Broken.__abstractmethods__ = frozenset()
APPS = {
    "echo": (Echo, Message, Echoed, 4),
    "guess": (Guessing, Guess, Text, 4),
    "alone": (Alone, Guess, Text, 1),
    "board": (Board, Move, Text, 4),
    "camera": (Seeing, Turn, Camera, 4),
    "tools": (Tools, CallToolAction, CallToolObservation, 4),
    "broken": (Broken, Guess, Text, 4),
}

if __name__ == "__main__":
    app = FastAPI()
    for name, (environment, action, observation, sessions) in APPS.items():
        app.mount(f"/{name}", create_app(environment, action, observation, max_concurrent_envs=sessions))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
