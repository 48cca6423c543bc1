from __future__ import annotations

import pytest

from dist_trainer.redact import REDACTED, redacted_argv, redacted_config, redacted_env


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "COMET_APIKEY"],
)
def test_a_variable_that_is_called_a_secret_is_not_recorded(name: str) -> None:
    assert redacted_env({name: "of-the-user"}) == {name: REDACTED}


@pytest.mark.parametrize("name", ["NUM_TOKENS", "OMP_NUM_THREADS", "KEYBOARD", "data.tokenizer", "PATH", "NCCL_DEBUG"])
def test_others_are(name: str) -> None:
    assert redacted_env({name: "1"}) == {name: "1"}
    assert redacted_argv([f"{name}=1", f"--{name}", "1"]) == [f"{name}=1", f"--{name}", "1"]


def test_what_the_user_named_is_not_recorded_whatever_it_is_called() -> None:
    assert redacted_env({"A": "1", "B": "2"}, ["A"]) == {"A": REDACTED, "B": "2"}


def test_a_password_in_an_address_is_not_recorded() -> None:
    hidden = f"http://me:{REDACTED}@proxy:8080/x"
    assert redacted_env({"http_proxy": "http://me:of-the-user@proxy:8080/x"}) == {"http_proxy": hidden}
    assert redacted_argv(["http://me:of-the-user@proxy:8080/x"]) == [hidden]


def test_a_token_in_the_query_of_an_address_is_not_recorded() -> None:
    asked = "data.source=https://store/a?part=1&X-Amz-Signature=of-the-user&api_key=abc#top"
    hidden = f"data.source=https://store/a?part=1&X-Amz-Signature={REDACTED}&api_key={REDACTED}#top"
    assert redacted_argv([asked]) == [hidden]
    assert redacted_env({"STORE": "https://store/a?num_tokens=1&monkey=2"}) == {
        "STORE": "https://store/a?num_tokens=1&monkey=2"
    }


def test_words_of_a_command_line_that_say_they_are_secret() -> None:
    argv = ["--set", "comet.api_key=abc", "--api-key=abc", "--hf-token", "abc", "--seed", "1", "--token", "--fresh"]
    assert redacted_argv(argv) == [
        "--set",
        f"comet.api_key={REDACTED}",
        f"--api-key={REDACTED}",
        "--hf-token",
        REDACTED,
        "--seed",
        "1",
        "--token",
        "--fresh",
    ]


@pytest.mark.parametrize(
    ("word", "hidden"),
    [
        ('comet={"api_key": "a\\"bc", "project": "x"}', f'comet={{"api_key": "{REDACTED}", "project": "x"}}'),
        ("comet={project: x, api_key: abc}", f'comet={{project: x, api_key: "{REDACTED}"}}'),
        ("comet={'api_key': 'a,b', project: x}", f"comet={{'api_key': \"{REDACTED}\", project: x}}"),
        ('a={"b": {"token": "abc"}}', f'a={{"b": {{"token": "{REDACTED}"}}}}'),
        ("a={num_tokens: 3, tokenizer: bpe, monkey: x}", "a={num_tokens: 3, tokenizer: bpe, monkey: x}"),
    ],
)
def test_a_secret_in_a_block_is_not_recorded(word: str, hidden: str) -> None:
    assert redacted_argv(["--set", word]) == ["--set", hidden]


def test_a_token_that_stands_as_an_address_user_is_not_recorded() -> None:
    assert redacted_argv(["https://ghp_abc@host/x", "ssh://git@host/x"]) == [
        f"https://{REDACTED}@host/x",
        "ssh://git@host/x",
    ]


def test_a_configuration_without_its_secrets() -> None:
    config = {"comet": {"api_key": "abc", "enabled": True}, "list": [{"token": "abc"}, {"token": ""}], "num_tokens": 3}
    assert redacted_config(config) == {
        "comet": {"api_key": REDACTED, "enabled": True},
        "list": [{"token": REDACTED}, {"token": ""}],
        "num_tokens": 3,
    }
    assert redacted_config({"steps": [1, 2]}) == {"steps": [1, 2]}
