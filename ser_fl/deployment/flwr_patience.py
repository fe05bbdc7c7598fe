"""A SuperNode that never gives its link up, and leaves a sign whenever the link has answered.

The SuperNode of Flower 1.41 takes a failed TLS handshake for the end: if another server stands on the link's address
for some seconds, it stops to ask for messages, and stays as a process that is connected to nothing. Its heartbeats end
as quietly, for good, at any answer that they do not expect. It tries again after 20 seconds, however soon the link is
back, and tells nobody whether it is connected. So what it retries, and how often, is replaced in its process, which
ends when the connection does. The hook may go when `test_flower_gives_up_a_link_at_a_failed_handshake` fails.
"""

import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

ANSWERED = "link.answered"
"""File in FLWR_HOME that is touched at each answer of the link."""
_LONGEST_PAUSE_S = 4
_BEAT_S = 12
"""Seconds between heartbeats, from which Flower takes 5 for the call, and then 10 to 30 %."""


def keep_calling() -> None:
    """Have this process, a SuperNode, call its link until the link refuses it."""
    import httpx
    from flwr.supercore import heartbeat
    from flwr.supercore.retry import exponential

    connection: Any = import_module("flwr.supernode.fleet_http_connection")
    program: Any = import_module("flwr.supernode.cli.flower_supernode")  # a function of that name hides it
    answered = Path(os.environ["FLWR_HOME"], ANSWERED)
    answered.parent.mkdir(parents=True, exist_ok=True)
    new_invoker, ask = connection.make_simple_http_retry_invoker, connection.FleetHttpClient._unary_unary

    def patient_invoker() -> Any:
        invoker: Any = new_invoker()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: isinstance(error, httpx.HTTPStatusError) and gives_up(error)
        invoker.wait_gen_factory = lambda: exponential(max_delay=_LONGEST_PAUSE_S)
        return invoker

    class PatientHeartbeats(heartbeat.HeartbeatSender):
        def __init__(self, beat: Callable[[], bool]) -> None:
            def try_to_beat() -> bool:
                try:
                    return beat()
                except (httpx.HTTPError, RuntimeError):  # Flower's thread would end
                    return False

            super().__init__(try_to_beat)
            self._retry_invoker.wait_gen_factory = lambda: exponential(max_delay=_LONGEST_PAUSE_S)

    def ask_and_note(client: Any, **call: Any) -> Any:
        answer = ask(client, **call)
        answered.touch()
        return answer

    patch.object(connection, "make_simple_http_retry_invoker", patient_invoker).start()
    patch.object(connection, "HeartbeatSender", PatientHeartbeats).start()
    patch.object(heartbeat, "HEARTBEAT_DEFAULT_INTERVAL", _BEAT_S).start()
    patch.object(connection.FleetHttpClient, "_unary_unary", ask_and_note).start()
    stay = program.start_client_internal

    def stay_and_end(**settings: Any) -> None:
        stay(**settings)
        os.kill(os.getpid(), signal.SIGTERM)  # else the process would live on without a connection

    patch.object(program, "start_client_internal", stay_and_end).start()
