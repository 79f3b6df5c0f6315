"""The server of a policy: what it listens to, who may ask, and how it stops."""

import asyncio
import contextlib
import logging
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from exit_jax import domains
from exit_jax.config.schema import Config, ServeConfig
from exit_jax.domains.task.prompts import Asked
from exit_jax.errors import ConfigError
from exit_jax.parallel import mesh as meshes
from exit_jax.serve.app import LOOPBACK, Service, make_app
from exit_jax.serve.batcher import Batcher
from exit_jax.serve.engine import Engine
from exit_jax.serve.words import Words
from exit_jax.step.policy import decoder_config, evaluation_sampling
from exit_jax.types import Params

log = logging.getLogger(__name__)

TOKEN = "EXIT_JAX_SERVE_TOKEN"


def find_token(settings: ServeConfig) -> str:
    """Return the token that clients must bear, "" for none.

    Raises:
      ConfigError: if there is none and others than this machine could ask, or its file cannot be read.
    """
    token = os.environ.get(TOKEN, "").strip()
    if settings.token_file:
        try:
            token = pathlib.Path(settings.token_file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"serve.token_file = {settings.token_file!r} cannot be read: {error}") from error
        if not token:
            raise ConfigError(f"serve.token_file = {settings.token_file!r} is empty; put a token into it")
    if not token and settings.host not in LOOPBACK:
        raise ConfigError(
            f"serve.host = {settings.host!r} may be reached by others, so it takes a token; set {TOKEN} or serve.token_file, "
            "or listen on 127.0.0.1"
        )
    return token


def bind(settings: ServeConfig) -> socket.socket:
    """Return a socket that listens, before anything is loaded or compiled.

    Raises:
      ConfigError: if it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on serve.host = {settings.host!r}, serve.port = {settings.port}: {error.strerror or error}; "
            "choose others (port 0 takes a free one)"
        ) from error
    return listener


class Server(uvicorn.Server):
    """A policy behind a socket, until it is told to stop: then requests have ``serve.grace`` seconds to finish."""

    def __init__(
        self, config: Config, params: Params, settings: ServeConfig, name: str, listener: socket.socket, token: str
    ):
        """Load what computes and compile it.

        Args:
          config: of an evaluation of prompts, as ``evaluation.asking.make_config`` returns it.
          params: all parameters of the policy.
        """
        assert isinstance(config.domain, Asked)
        words, policy = Words(config.domain), decoder_config(config)
        context = min(settings.context, config.domain.longest or settings.context)
        sampling = evaluation_sampling(config.eval, domains.make(config.domain_name, config.domain), context)
        started = time.monotonic()
        mesh = meshes.make_mesh(config.run.mesh)
        engine = Engine(policy, sampling, params, mesh, settings.rows, context, settings.tokens_per_call)
        engine.compile()
        self.compile_seconds = time.monotonic() - started
        self.batcher = Batcher(engine, settings.max_queue)
        self.service = Service(
            words, self.batcher, config.eval, name, context, settings.max_steps, settings.max_body, token
        )
        self._grace, self._listener = settings.grace, listener
        options = {"log_level": "warning", "access_log": False, "lifespan": "off", "timeout_keep_alive": 30}
        super().__init__(uvicorn.Config(make_app(self.service), server_header=False, **options))

    @property
    def url(self) -> str:
        """The address that clients take as base_url."""
        host, port, *_ = self._listener.getsockname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def serve_forever(self) -> None:
        """Answer requests until ``stop`` is called, or a signal comes."""
        self.batcher.start()
        try:
            asyncio.run(self.serve(sockets=[self._listener]))
        finally:
            self.batcher.close()
            self._listener.close()

    def stop(self) -> None:
        """Take no further request, and end once those that were taken are answered, or have failed."""
        self.batcher.stop(self._grace)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop; a second signal ends all at once."""
        if self.should_exit:
            self.batcher.stop(0.0)
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have signals stop the server; unlike uvicorn's, they are not raised again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def summary(self) -> str:
        """Return what was done, for people."""
        s = self.service
        return (
            f"stopped: {s.num_answered} requests answered with {self.batcher.num_tokens} tokens, {s.num_refused} refused, "
            f"{s.num_gone} given up by their clients"
        )
