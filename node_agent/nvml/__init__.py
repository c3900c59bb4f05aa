"""NVML at arm's length: a child process makes the driver calls, pure code turns two readings into facts.

In the child: `child` (the loop), `driver` with `readers` and `fields` (the real library), `simulated` (a JSON file in its place).
In the agent: `process` (starts, asks, kills the child), `protocol` (replies to values), `facts` with `states` and `counters`
(what changed), `remembered` (what a restart must not forget). The child imports nothing of the agent's side: 15 MB is the budget.
"""
