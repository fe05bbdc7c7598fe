"""A SuperNode that sends every reply, also one that it did not wait for.

The SuperNode of Flower 1.41 waits for a reply after each message that it received whole, and takes the first that
comes. If the link ends while it receives a message, it forgets that message, but the task that it had begun still
replies, and that reply is taken for the next message's. From then on every reply lies there until one more message
comes, and a server that waits for all nodes waits for ever. So the function by which it asks for a message is replaced
in its process. The hook may go when `test_flower_leaves_a_reply_that_it_did_not_wait_for` fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState


def send_overdue_replies() -> None:
    """Let this process, a SuperNode, look for replies even when no message came."""
    from flwr.supernode import start_client_internal as supernode

    pull = supernode._pull_and_store_message

    def pull_or_find_reply(state: InMemoryNodeState, *arguments: Any, **settings: Any) -> int | None:
        """The run of a message that came, or else of a reply that waits: for either, Flower's loop sends replies."""
        run_id = pull(state, *arguments, **settings)
        return overdue_run(state) if run_id is None else run_id

    patch.object(supernode, "_pull_and_store_message", pull_or_find_reply).start()


def overdue_run(state: InMemoryNodeState) -> int | None:
    """The run of a reply that nobody has sent yet, or None."""
    with state.lock_msg_store:
        waiting = (entry.message.metadata for entry in state.msg_store.values() if not entry.is_retrieved)
        return next((metadata.run_id for metadata in waiting if metadata.reply_to_message_id), None)
