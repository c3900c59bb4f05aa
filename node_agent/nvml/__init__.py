"""NVML at arm's length: a child process makes the driver calls, pure code turns two readings into facts.

In the child: `child` (the loop), `driver` with `device`, `readers`, `interconnect`, `fields` and `events` (the real library),
`simulated` (a JSON file in its place). In the agent: `process` (starts, asks, kills the child), `protocol` (replies to values),
`facts` with `states` and `counters` (what changed on a GPU), `node` (GPUs that come and go, the driver as a whole), `remembered`
(what a restart must not forget). The child imports nothing of the agent's side: 15 MB is the budget.
"""
