"""One bounded LLM run over an incident: queue, loop, backends, sources, grounding. It always ends in something to publish."""
