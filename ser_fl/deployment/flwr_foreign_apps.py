"""A SuperNode that runs the ser_fl installed beside it, and no app with code of its own.

The SuperNode of Flower 1.41 runs whatever app a run brings. Its trusted entities are signatures that only Flower's own
platform hands on ("not supported by the connected SuperLink" otherwise). So the function by which it takes a message is
replaced in its process: before an app is stored, a node whose policy says `app: installed` looks into it, and answers
with an error where it is another than ours. The hook may go when `test_flower_runs_an_app_with_code_of_its_own` fails.
"""

import io
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ser_fl.config.policy import read_policy
from ser_fl.errors import UserError, one_line, shown
from ser_fl.runs.audit import AuditLog

_OURS = "ser_fl.federation.flower.client_app:app"
_FILES = {"pyproject.toml", "run.toml", ".info/CONTENT"}
"""What an app without code holds: its description, an experiment's settings, and Flower's list of both."""
_MOST_BYTES = 1 << 20


class _Foreign(Exception):
    """An app that is refused."""


def refuse_foreign_apps() -> None:
    """Let this process, a SuperNode, look into each app before it takes it."""
    from flwr.app import Error
    from flwr.app.message import Message
    from flwr.common.constant import ErrorCode
    from flwr.supernode import start_client_internal as supernode

    pull = supernode._pull_and_store_message

    def pull_if_ours(**given: Any) -> int | None:
        came: list[Message] = []

        def receive() -> Any:
            if (received := given["receive"]()) is not None:
                came.append(received[0])
            return received

        def get_fab(fab_hash: str, run_id: int) -> Any:
            fab = given["get_fab"](fab_hash, run_id)
            if reason := why_refused(fab.content, given["node_config"]):
                raise _Foreign(reason)
            return fab

        try:
            return pull(**{**given, "receive": receive, "get_fab": get_fab})
        except _Foreign as refused:
            (message,) = came
            run_id = message.metadata.run_id
            AuditLog(Path(given["node_config"]["state"], "audit.jsonl")).add(
                run=str(run_id), type="app", asked=message.metadata.message_type, allowed=False, why=str(refused)
            )
            reply = Message(Error(ErrorCode.INVALID_FAB, str(refused)), reply_to=message)
            supernode._insert_message(reply, given["state"], given["object_store"])
            return int(run_id)

    patch.object(supernode, "_pull_and_store_message", pull_if_ours).start()


def why_refused(fab: bytes, node_config: dict[str, Any]) -> str | None:
    """What is wrong with an app, for the node of a configuration; None where it may run."""
    try:
        if read_policy(Path(str(node_config["policy"]))).app == "any":
            return None
    except UserError as error:
        return f"the policy of this node cannot be read: {error}"
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as archive:
            names, infos = archive.namelist(), archive.infolist()
            if foreign := sorted(set(names) - _FILES) or [name for name in names if names.count(name) > 1]:
                return f"the policy of this node: app: installed, and this app brings {shown(foreign[0])}"
            if sum(info.file_size for info in infos) > _MOST_BYTES:
                return f"the policy of this node: an app of more than {_MOST_BYTES} bytes"
            project = tomllib.loads(archive.read("pyproject.toml").decode())
        components = dict(project["tool"]["flwr"]["app"]["components"])
        components.pop("serverapp", None)  # the link's
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        return f"the policy of this node: an app that cannot be read: {one_line(str(error), 200)}"
    if components != {"clientapp": _OURS}:
        return f"the policy of this node: app: installed, and this app runs {shown(components)}"
    return None
