"""The flags of a command that may run as several processes, and their joining."""

import os
from contextlib import AbstractContextManager

from absl import flags

from launch import entry

COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port where process 0 of several listens.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of the processes this is, from 0 on.", lower_bound=0)
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "How many processes there are.", lower_bound=1)
JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", None, "Seconds for all processes to join.", lower_bound=1)


def joined() -> AbstractContextManager[None]:
    """lcm_jax.joining.joined with what the flags say; what they leave out is found in the environment."""
    from lcm_jax import joining

    return joining.joined(COORDINATOR.value, PROCESS_ID.value, PROCESS_COUNT.value, JOIN_TIMEOUT.value)


def alone(instead: str) -> None:
    """Ends a command that works as one process where it was started as several, which would write the same files."""
    from lcm_jax import joining

    if (count := joining.told_count(os.environ)) > 1:
        entry.stop(f"this is one of {count} processes, but this command works as one: {instead}")
