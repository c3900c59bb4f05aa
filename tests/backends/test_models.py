"""Models: what the table says, what a site changes, what the endpoint says, and which backend asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from aggregator.investigator.llm import BackendFailed, FailureKind, Usage
from aggregator.investigator.llm.backends import backend_of
from aggregator.investigator.llm.models import ModelsError, read_models
from tests.backends.conftest import open_session
from tests.doubles.llm import Redirect, Status, say

PAGE = Status(200, body=b"<html>Sign in</html>", headers={"content-type": "text/html"})


def test_the_packaged_table_prices_both_models_of_anthropic() -> None:
    """Two dollars in and ten out; three and fifteen. Reading the cache is cheaper than reading afresh."""
    table = read_models()
    usage = Usage(input_tokens=1_000_000, cached_tokens=400_000, cache_written_tokens=100_000, output_tokens=100_000)
    for model, cost in (
        ("claude-sonnet-5-5", 0.5 * 2 + 0.4 * 0.2 + 0.1 * 2.5 + 0.1 * 10),
        ("claude-sonnet-4-6", 0.5 * 3 + 0.4 * 0.3 + 0.1 * 3.75 + 0.1 * 15),
    ):
        assert table.facts(model).capabilities(model).cost_usd(usage) == pytest.approx(cost)
    assert table.defaults == {"anthropic": "claude-sonnet-5-5", "openai": "gpt-5.5"}


def test_default_models_are_models_of_the_installed_sdks() -> None:
    """An id of last year would be refused; one with an announced end would be refused soon."""
    import anthropic.types.model
    import openai.types.shared.chat_model
    from anthropic.resources.messages.messages import DEPRECATED_MODELS

    defaults = read_models().defaults
    literals, _ = get_args(anthropic.types.model.Model)
    assert defaults["anthropic"] in get_args(literals)
    assert defaults["anthropic"] not in DEPRECATED_MODELS
    assert defaults["openai"] in get_args(openai.types.shared.chat_model.ChatModel)
    ending = Path(openai.types.shared.chat_model.__file__).read_text().partition('"""Deprecated values:')[2]
    assert ending
    assert f'"{defaults["openai"]}"' not in ending


def test_a_sites_table_adds_and_changes_and_leaves_the_rest(tmp_path: Path) -> None:
    """A price alone leaves the limits of the packaged row."""
    path = tmp_path / "models.toml"
    path.write_text(
        '[defaults]\nopenai = "local"\n[models."gpt-5.5"]\ninput_usd = 4\n[models.local]\nmax_input_tokens = 32768\nthinking = "none"\n'
    )
    packaged, table = read_models(), read_models(path)
    assert table.defaults == {"anthropic": "claude-sonnet-5-5", "openai": "local"}
    assert table.facts("gpt-5.5").input_usd == 4
    assert table.facts("gpt-5.5").max_input_tokens == packaged.facts("gpt-5.5").max_input_tokens
    assert table.facts("local").max_input_tokens == 32768
    assert table.facts("claude-sonnet-5-5") == packaged.facts("claude-sonnet-5-5")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[models", "not TOML"),
        ("models = 3", "models: expected a table"),
        ("[model.x]\n", "unknown field model"),
        ("[models]\nx = 3", "models.x: expected a table"),
        ("[models.x]\nprice = 3", "models.x: unknown field price"),
        ('[models.x]\ninput_usd = "2"', "models.x.input_usd: expected dollars"),
        ("[models.x]\noutput_usd = -1", "models.x.output_usd"),
        ("[models.x]\noutput_usd = nan", "models.x.output_usd"),
        ("[models.x]\noutput_usd = true", "models.x.output_usd"),
        ("[models.x]\nmax_input_tokens = 1e6", "models.x.max_input_tokens: expected a number of tokens"),
        ("[models.x]\nmax_output_tokens = 0", "models.x.max_output_tokens"),
        ('[models.x]\nstructured_output = "yes"', "models.x.structured_output: expected true or false"),
        ('[models.x]\nthinking = "deep"', "models.x.thinking: expected one of none, adaptive, encrypted"),
        ('[defaults]\nclaude = "x"', "defaults: unknown field claude"),
        ("[defaults]\nopenai = 5", "defaults.openai: expected the id of a model"),
    ],
)
def test_a_bad_table_is_refused_with_its_file_and_field(text: str, named: str, tmp_path: Path) -> None:
    """One line that an operator can act on."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ModelsError) as error:
        read_models(path)
    assert named in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_table_that_cannot_be_read_is_told(content: bytes | None, tmp_path: Path) -> None:
    """Absent, or no text."""
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelsError, match="cannot be read"):
        read_models(path)


async def test_what_the_endpoint_says_of_a_model_goes_before_the_table() -> None:
    """Its limits are its own; prices it does not tell."""
    async with open_session("anthropic", say("x"), context_tokens=200_000, output_tokens=64_000) as session:
        capabilities = await session.backend.probe()
        assert (capabilities.max_input_tokens, capabilities.max_output_tokens) == (200_000, 64_000)
        assert (capabilities.input_usd, capabilities.output_usd) == (2, 10)
        await session.turn(max_tokens=100_000)
        assert session.llm.turns[0].body["max_tokens"] == 64_000


@pytest.mark.parametrize("model", ["claude-sonnet-4-6-20250725", "gpt-5.5-turbo"])
async def test_a_wrong_model_is_unknown(api: str, model: str) -> None:
    """At the probe, and where nobody probed, at the first turn."""
    async with open_session(api, say("x"), model=model) as session:
        for ask in (session.backend.probe, session.turn):
            with pytest.raises(BackendFailed) as failed:
                await ask()
            assert failed.value.kind is FailureKind.MODEL_UNKNOWN


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Status(503), FailureKind.SERVER_ERROR),
        (Status(429, retry_after="3600"), FailureKind.RATE_LIMITED),
        (Status(403), FailureKind.AUTHENTICATION),
        (Redirect("http://127.0.0.1:1/"), FailureKind.UNREACHABLE),
        (PAGE, FailureKind.UNREADABLE),
    ],
    ids=["503", "429", "403", "redirect", "page"],
)
@pytest.mark.parametrize("api", ["anthropic", "openai-responses"])
async def test_a_probe_that_fails_says_how(api: str, fault: Status | Redirect, kind: FailureKind) -> None:
    """The same kinds as for a turn."""
    async with open_session(api, say("x"), on_models=fault) as session:
        with pytest.raises(BackendFailed) as failed:
            await session.backend.probe()
    assert failed.value.kind is kind


@pytest.mark.parametrize(
    ("api", "base_url", "kind", "model"),
    [
        ("anthropic", "", "AnthropicBackend", "claude-sonnet-5-5"),
        ("anthropic", "http://llm.internal/v1", "AnthropicBackend", "claude-sonnet-5-5"),
        ("openai", "", "ResponsesBackend", "gpt-5.5"),
        ("openai", "https://api.openai.com", "ResponsesBackend", "gpt-5.5"),
        ("openai", "https://eu.api.openai.com/v1", "ResponsesBackend", "gpt-5.5"),
        ("openai", "http://vllm.gpu.svc:8000", "ChatBackend", "gpt-5.5"),
        ("openai", "https://api.openai.com.evil.example/v1", "ChatBackend", "gpt-5.5"),
        ("openai-responses", "http://gateway:4000/v1", "ResponsesBackend", "gpt-5.5"),
    ],
)
async def test_api_and_address_choose_the_backend_and_the_model(api: str, base_url: str, kind: str, model: str) -> None:
    """OpenAI's own hosts are asked through Responses, others through Chat Completions."""
    backend = backend_of(api, base_url=base_url)
    assert (type(backend).__name__, backend.model) == (kind, model)
    assert backend.name == api.partition("-")[0]
    await backend.close()


def test_an_api_nobody_knows_is_refused() -> None:
    """With the names of those there are."""
    with pytest.raises(ValueError, match="expected anthropic, openai"):
        backend_of("bedrock")


def test_choosing_costs_no_sdk_before_it_is_chosen() -> None:
    """Neither the seam nor the registry imports an SDK; a backend imports its own alone."""
    program = (
        "import sys, aggregator.investigator.llm.backends as b\n"
        "assert not {'anthropic', 'openai'} & set(sys.modules)\n"
        "b.backend_of('anthropic')\n"
        "assert 'anthropic' in sys.modules and 'openai' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
