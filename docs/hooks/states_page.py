"""The page of a job's states, from `mhs_ray.domain.states`."""

from __future__ import annotations

from docs.hooks.source import remarks, table
from mhs_ray.domain.states import TRANSITIONS, JobEvent, JobState, mermaid


def page() -> str:
    """Return the page."""
    said = remarks(JobEvent)
    events = [
        (f"`{e}`", said.get(e.name, ""), ", ".join(_moves(e)) or "none", ", ".join(_stays(e)) or "none")
        for e in JobEvent
    ]
    states = [
        (f"`{s}`", "final" if s.is_terminal else "an attempt is at work" if s.is_active else "waits") for s in JobState
    ]
    return f"""# States of a job

The diagram and the tables are made of `mhs_ray/domain/states.py`, the one table that decides.

```mermaid
{mermaid()}
```

{table(("state", "kind"), states)}

## Events

An event that comes late or twice is a row that changes nothing: what an attempt says after a cancel does not undo it.
An event that is in neither column is refused for that state, such as cancelling a job that succeeded.

{table(("event", "meaning", "leads from → to", "changes nothing in"), events)}

What a failure leads to (another attempt, or the end) is decided by its [class](failures.md).
"""


def _moves(event: JobEvent) -> list[str]:
    return [f"{b} → {a}" for (b, e), a in TRANSITIONS.items() if e is event and a is not b]


def _stays(event: JobEvent) -> list[str]:
    return [str(b) for (b, e), a in TRANSITIONS.items() if e is event and a is b]
