import pytest

from tunerun import redact

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8" * 2


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hub_token",
        "HF_TOKEN",
        "accessToken",
        "api_key",
        "apiKey",
        "API-KEY",
        "WANDB_API_KEY",
        "OPENAI_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "password",
        "db.password",
        "DB_PWD",
        "client_secret",
        "GOOGLE_CREDENTIALS",
        "private_key",
        "ssh_passphrase",
        "OPENAI_API_KEY_2",
        "HF_TOKEN_WRITE",
        "HF_TOKEN_READ_2",
        "DB_PASS",
        "PGPASSWORD",
        "GH_PAT",
        "MYSQL_PWD",
    ],
)
def test_names_of_secrets(name):
    assert redact.is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "pad_token",
        "eos_token",
        "bosToken",
        "num_tokens",
        "max_tokens",
        "max_new_tokens",
        "trained_tokens",
        "tokens_per_second",
        "token_ids",
        "token_type_ids",
        "tokenizer",
        "TOKENIZERS_PARALLELISM",
        "api_key_env",
        "HF_TOKEN_PATH",
        "secret_name",
        "sort_key",
        "key",
        "keys",
        "keyboard",
        "PWD",
        "OLDPWD",
        "SSH_AUTH_SOCK",
        "author",
        "passes",
        "forward_pass",
        "hf_token_2",
        "PAD_TOKEN_2",
        "HF_TOKEN_PATH_2",
        "PASS",
        "KEY_2",
        "2",
        "",
    ],
)
def test_names_of_other_things(name):
    assert not redact.is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"loading with {TOKEN}", TOKEN),
        ("key sk-proj-A1b2C3d4E5f6G7h8I9j0K1l2 refused", "sk-proj-A1b2C3d4E5f6G7h8I9j0K1l2"),
        ("remote: ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("https://me:hunter2@example.org/x", "hunter2"),
        ("git+https://mytoken@example.org/x", "mytoken"),
        ("Authorization: Bearer abcdef0123456789xyz", "abcdef0123456789xyz"),
        ("wandb: key is " + "0123456789abcdef" * 2 + "01234567", "0123456789abcdef" * 2 + "01234567"),
        ("WANDB_API_KEY=abc tunerun", "=abc"),
        ("password=hunter2", "hunter2"),
        ('"api_key": "topsecret"', "topsecret"),
        ("serve --api-key topsecret --port 80", "topsecret"),
        ("export HF_TOKEN=abcdefgh1", "abcdefgh1"),
        ("of the environment: correct horse", "correct horse"),
    ],
)
def test_secrets_in_text(text, secret):
    cleaned = redact.text(text, ("correct horse",))
    assert secret not in cleaned
    assert redact.MARK in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "commit 0123456789abcdef0123456789abcdef01234567",
        "model revision=0123456789abcdef0123456789abcdef01234567",
        "+    token = tokenizer.decode(ids)",
        "pad_token: <|endoftext|>",
        "max_tokens=12345678",
        "tokens: 1234567890",
        "hf_transfer_is_enabled_for_downloads",
        "pip install sk-learn-contrib-something-or-other",
        "ssh://git@github.com/org/repo",
        "https://example.org/a@b",
        "the token 12345678 is unknown",
        "serve.api_key_env=TUNERUN_KEY",
        "HF_TOKEN=$HF_TOKEN",
        "密码：请勿写在配置里",
        "user@example.org",
    ],
)
def test_text_that_only_looks_like_it_stays(text):
    assert redact.text(text, ()) == text


def test_data_loses_values_of_secret_keys_at_any_depth():
    data = {"a": [{"hub_token": "abc", "pad_token": "<pad>"}], "count": 3, "password": None, "url": "http://u:p@h/"}
    assert redact.data(data, ()) == {
        "a": [{"hub_token": redact.MARK, "pad_token": "<pad>"}],
        "count": 3,
        "password": None,
        "url": f"http://{redact.MARK}@h/",
    }


def test_numbers_and_lists_under_a_secret_key_go_too():
    data = {"password": 12345678, "api_key": ["one", "two"], "token": 1.5, "secrets": [], "passwords": True}
    hidden = {**dict.fromkeys(("password", "api_key", "token"), redact.MARK), "secrets": [], "passwords": True}
    assert redact.data(data, ()) == hidden
    assert [problem.where for problem in redact.problems(data, ())] == ["password", "api_key", "token"]


def test_text_of_a_config_is_not_read_as_assignments():
    prompt = {"prompts": ["What does password=1234 mean?"]}
    assert redact.data(prompt, ()) == prompt
    assert redact.problems(prompt, ()) == []


def test_values_of_secret_variables_are_known_the_longest_first():
    environment = {"HF_TOKEN": "abcdefgh", "MY_SECRET": "abcdefghij", "SHORT_TOKEN": "abc", "HOME": "/home/someone"}
    assert redact.secret_values(environment) == ("abcdefghij", "abcdefgh")


def test_problems_name_the_key_and_not_the_value():
    found = redact.problems({"data.path": ("x.jsonl", f"https://h/{TOKEN}"), "data.max_length": 5}, ())
    assert [problem.where for problem in found] == ["data.path"]
    assert TOKEN not in str(found[0])


def test_a_variable_that_the_config_names_holds_a_secret_whatever_it_is_called():
    environment = {"TEACHER": "plain-looking-value", "OTHER": "something-else", "SHORT": "abc"}
    assert redact.secret_values(environment) == ()
    assert redact.secret_values(environment, ("TEACHER", "SHORT", "UNSET", None)) == ("plain-looking-value",)
