"""A scripted model behind a real HTTP endpoint: Anthropic Messages, OpenAI Responses and Chat Completions, streamed.

    with ScriptedLlm([
        call("get_node_info", node="gpu-1"),                       # one tool call
        calls(Call("a"), Call("b", {"x": 1}), thinking="Hm."),     # several, with a thinking block before them
        Status(529), Status(429, retry_after="1"),                 # the endpoint's faults are steps as well
        Broken(say("half a"), "cut", after_events=3),              # cut | end | error | silence | garbage, mid-stream
        answer({"severity": "warning", "claims": []}),             # structured output
    ]) as llm:
        ...  # base URL llm.url, key KEY, a model of MODELS

**A script** is a sequence of steps that requests take in order, one step, or a function of what was asked (`Asked`: system, tools,
user texts, tool results with their ids, number of turns) to a step, called in the server's thread; `for_each_conversation` gives each
conversation its own run of the steps, `forever` starts again. A step is a `Reply` (`say`, `answer`, `call`, `calls`; with `thinking`,
`stop`, `usage`, `delay_seconds`, `chunk_seconds`), a `Status`, a `Broken` reply, a `Redirect` or a `Huge` answer. Arguments of a `Call` given as
text go out as they are. A request beyond the script's end is refused and fails the test when the server closes.

**What came** is in `llm.requests` (every request: headers, raw bytes, parsed body), `llm.turns` (accepted requests for a turn) and
`llm.refused`. The server refuses with 400, in the real endpoint's shape and words, what real endpoints refuse: forced tool choice,
temperature or top_p, assistant prefill, results without their call and calls without their result, thinking or encrypted reasoning
that is missing or altered, duplicate tool names, too many strict tools, schemas that structured output does not take, unknown
parameters, a fifth cache breakpoint, too long or too large a prompt; on Responses also `store` other than false or no encrypted reasoning included.
A wrong key is 401, an unknown model 404.

**Usage** is estimated at four bytes a token over a simulated prompt cache (breakpoints and look-back on Messages, longest prefix
elsewhere), unless the reply gives `Tokens`.

**Compatible endpoints**: `without={"tools"}` refuses tools, `"schema"` refuses `response_format`, `"schema_with_tools"` takes both but then
never calls a tool (as constrained decoding does), `"calls"` never calls when tried, `"models"` has no model list. A backend's trial request
(its one tool, or the one its system text describes, is named `ready`) is answered by the server itself and takes no step.

In a process of its own: `python -m tests.doubles.llm MODULE:NAME [--port N]`; it prints its URL.
"""

from tests.doubles.llm.script import (
    Asked,
    Broken,
    Call,
    Huge,
    Redirect,
    Reply,
    Script,
    Status,
    Step,
    Tokens,
    answer,
    call,
    calls,
    for_each_conversation,
    forever,
    in_order,
    say,
    thinking,
)
from tests.doubles.llm.server import KEY, MODELS, Recorded, ScriptedLlm

__all__ = [
    "KEY",
    "MODELS",
    "Asked",
    "Broken",
    "Call",
    "Huge",
    "Recorded",
    "Redirect",
    "Reply",
    "Script",
    "ScriptedLlm",
    "Status",
    "Step",
    "Tokens",
    "answer",
    "call",
    "calls",
    "for_each_conversation",
    "forever",
    "in_order",
    "say",
    "thinking",
]
