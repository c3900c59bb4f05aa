"""Which backend speaks to which endpoint. An SDK is imported with the first backend that needs it, never before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from urllib.parse import urlsplit

from pydantic import SecretStr

from aggregator.investigator.llm import Backend
from aggregator.investigator.llm.attempts import Patience
from aggregator.investigator.llm.models import ModelFacts, ModelTable, read_models
from aggregator.investigator.llm.transport import Endpoint

Make = Callable[[str, Endpoint, ModelFacts, Patience], Backend]

BACKENDS: Mapping[str, tuple[str, str]] = {
    "anthropic": ("anthropic", "AnthropicBackend"),
    "openai-responses": ("openai_responses", "ResponsesBackend"),
    "openai-chat": ("openai_chat", "ChatBackend"),
}
ANTHROPIC_URL = "https://api.anthropic.com"
OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
NO_KEY = SecretStr("")
PATIENCE = Patience()


def backend_of(
    api: str,
    *,
    model: str = "",
    key: SecretStr = NO_KEY,
    base_url: str = "",
    models: ModelTable | None = None,
    patience: Patience = PATIENCE,
) -> Backend:
    """The backend for `anthropic` or `openai`; `openai-responses` and `openai-chat` name one of OpenAI's two APIs.

    For `openai`, OpenAI's own hosts are asked through Responses, any other through Chat Completions, which is what compatible
    endpoints have. An empty model is the table's default. Raises ValueError for an API there is none for.
    """
    table = models or read_models()
    flavour = _flavour(api, base_url)
    if flavour not in BACKENDS:
        raise ValueError(f"no LLM API {api}: expected anthropic, openai, openai-responses or openai-chat")
    chosen = model or table.defaults[flavour.partition("-")[0]]
    module, name = BACKENDS[flavour]
    make: Make = getattr(import_module(f"{__package__}.{module}"), name)
    return make(chosen, Endpoint(_base_url(flavour, base_url), key), table.facts(chosen), patience)


def _flavour(api: str, base_url: str) -> str:
    if api != "openai":
        return api
    host = urlsplit(base_url).hostname or OPENAI_HOST
    own = host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")  # regions: eu.api.openai.com
    return "openai-responses" if own else "openai-chat"


def _base_url(flavour: str, given: str) -> str:
    """As the SDK wants it: Anthropic's adds `/v1` itself, OpenAI's does not."""
    if flavour == "anthropic":
        return (given or ANTHROPIC_URL).rstrip("/").removesuffix("/v1")
    url = (given or OPENAI_URL).rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"
