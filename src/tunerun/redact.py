"""Takes secrets out of everything that is written: by the name of a key, by known values, by the look of a value.

What counts as a secret, and the incidents behind it: research/ecosystem.md B3 "Secrets". Names such as `pad_token` or
`max_tokens` are no secrets, and a run that loses them cannot be read any more, so the rules are narrow and tested on
both sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from tunerun.errors import Problem

MARK = "[redacted]"
_MIN_VALUE_LENGTH = 8

_ALWAYS = frozenset({"secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential", "credentials"})
_KEY_KINDS = frozenset({"api", "access", "private", "secret", "auth", "account", "signing", "encryption", "ssh"})
# Where a secret lies, or how it is called, is no secret: `api_key_env`, `HF_TOKEN_PATH`.
_PLACES = frozenset({"env", "file", "path", "dir", "folder", "name", "id", "ids", "count", "length", "type"})
# How variables, which are written in capitals, call a secret besides; and what tells several of them apart.
_IN_CAPITALS = frozenset({"pass", "pat", "pwd"})
_JOINED = ("password", "passwd", "passphrase", "apikey")
_WHICH = frozenset(
    {"write", "read", "rw", "ro", "prod", "production", "staging", "dev", "test", "main", "backup", "old"}
)
# Tokens that a tokenizer knows.
_TOKENIZER_TOKEN = re.compile(
    "pad|eos|bos|unk|sep|cls|mask|start|end|stop|image|audio|video|special|added|im|next|last|first|new|per|each|tool"
    "|think|prefix|suffix|middle|begin|final|prompt|fill|eot|eom"
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_VALUE = r"""([^\s"',;{}()\[\]$<>]+)"""
_ASSIGNMENT = re.compile(r"""([A-Za-z_][\w.-]*)(["']?\s*[=:]\s*["']?)""" + _VALUE)
_OPTION = re.compile(r"""(?<!\S)--([A-Za-z][\w.-]*)(\s+["']?)(?!-)""" + _VALUE)
# `?api_key=...` of an address; what signs an address opens what it leads to.
_QUERY = re.compile(r"""([?&]([A-Za-z][\w.-]*)=)([^&\s"'#<>]+)""")
_SIGNATURES = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature"})
_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_KEY_END = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")
_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), MARK),
    (re.compile(r"\bsk-(?=[\w-]*\d)[\w-]{20,}"), MARK),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"), MARK),
    (re.compile(r"\bgithub_pat_\w{22,}"), MARK),
    (re.compile(r"\bglpat-[\w-]{20,}"), MARK),
    (re.compile(r"\bAIza[\w-]{30,}"), MARK),
    (re.compile(r"\bxox[abeprs]-[\w-]{10,}"), MARK),
    (re.compile(r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"), MARK),
    (re.compile(r"\bnpm_[A-Za-z0-9]{36,}"), MARK),
    (re.compile(r"\bpypi-AgE[\w-]{16,}"), MARK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MARK),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), MARK),
    (re.compile(r"\bms-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), MARK),
    (re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"), MARK),
    (re.compile(r"(?i)\b(bearer\s+)(?=[\w.~+/-]*\d)[\w.~+/-]{16,}=*"), rf"\1{MARK}"),
    (re.compile(r"(://)[^/\s:@]*:[^/\s@]+(?=@)"), rf"\1{MARK}"),
    (re.compile(r"(https?://)[^/\s:@]+(?=@)"), rf"\1{MARK}"),
    # A bare 40-digit hex number is a commit; beside the word wandb it is a key.
    (re.compile(r"""(?i)(wandb[\w .:="'-]{0,40}?)\b[0-9a-f]{40}\b"""), rf"\1{MARK}"),
)


def is_secret_name(name: str) -> bool:
    """Returns whether a key or variable of this name holds a secret.

    Args:
        name: In any spelling: `hub_token`, `HF_TOKEN`, `apiKey`, `serve.api-key`.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    is_variable = name.isupper()
    while is_variable and len(words) > 1 and (words[-1] in _WHICH or words[-1].isdigit()):
        words.pop()
    if not words or words[-1] in _PLACES:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if _ALWAYS & set(words) or last == "apikey":
        return True
    if last == "token":
        return _TOKENIZER_TOKEN.fullmatch(before) is None
    if last == "key":
        # `OPENAI_KEY` in an environment is a key; `sort_key` in a config is not.
        return before in _KEY_KINDS or (is_variable and len(words) > 1)
    if is_variable and (last.endswith(_JOINED) or (last in _IN_CAPITALS and len(words) > 1)):
        return True
    return last == "pwd" and len(words) > 1


def secret_values(environment: Mapping[str, str], named: Collection[str | None] = ()) -> tuple[str, ...]:
    """Returns the values of secret-looking variables, the longest first; shorter than 8 characters match too much.

    A value is also known by each of its lines, as logs have it, and as addresses and JSON write it.

    Args:
        environment: Variables.
        named: Names of further ones that hold secrets, whatever they look like; None is nothing.
    """
    found: set[str] = set()
    for name, value in environment.items():
        if is_secret_name(name) or name in named:
            # The fences of a private key are no secret.
            lines = [line.strip() for line in value.splitlines() if not line.startswith("-----")]
            forms = {form for part in (value, *lines) for form in (part, quote(part, safe=""), json.dumps(part)[1:-1])}
            found |= {form for form in forms if len(form) >= _MIN_VALUE_LENGTH}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


class Lines:
    """Takes secrets out of line after line of output; a private key is several of them."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        """Takes values that must not appear, from `secret_values`."""
        self._secrets = secrets
        self._in_key = False

    def __call__(self, line: str) -> str:
        """Returns a line without its secrets."""
        if self._in_key:
            self._in_key = _KEY_END.search(line) is None
            return MARK
        self._in_key = _KEY_BEGIN.search(line) is not None and _KEY_END.search(line) is None
        return text(line, self._secrets)


def text(value: str, secrets: tuple[str, ...]) -> str:
    """Returns a text without its secrets.

    Args:
        value: A line of output, a command line, a diff; `password=...` in it counts as a secret by its name.
        secrets: Values that must not appear, from `secret_values`.
    """
    return _OPTION.sub(_without_value, _ASSIGNMENT.sub(_without_value, values(value, secrets)))


def values(value: str, secrets: tuple[str, ...]) -> str:
    """Returns a text without known secrets and without what looks like one; names in it mean nothing."""
    for secret in secrets:
        value = value.replace(secret, MARK)
    for pattern, replacement in _LOOKS:
        value = pattern.sub(replacement, value)
    return _QUERY.sub(_without_parameter, value)


def data(value: Any, secrets: tuple[str, ...]) -> Any:
    """Returns plain data without its secrets; the value of a key with a secret name goes whole."""
    if isinstance(value, Mapping):
        return {key: MARK if _hides(str(key), item) else data(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [data(item, secrets) for item in value]
    return values(value, secrets) if isinstance(value, str) else value


def problems(flat: Mapping[str, Any], secrets: tuple[str, ...]) -> list[Problem]:
    """Finds secrets in a config, which would reach every file of the run.

    Args:
        flat: The config by dotted key.
        secrets: Values that must not appear, from `secret_values`.
    """
    fix = "Take it out and put it into an environment variable (HF_TOKEN, WANDB_API_KEY, ...)."
    return [
        Problem(where=key, what="holds a secret, which would be written into the run's files.", fix=fix)
        for key, value in flat.items()
        if data({key: value}, secrets) != {key: _plain(value)}
    ]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _hides(key: str, value: Any) -> bool:
    is_empty = value is None or isinstance(value, bool | Mapping) or value in ("", [], ())
    return not is_empty and is_secret_name(key)


def _without_parameter(match: re.Match[str]) -> str:
    is_secret = is_secret_name(match[2]) or match[2].lower() in _SIGNATURES
    return f"{match[1]}{MARK}" if is_secret else match[0]


def _without_value(match: re.Match[str]) -> str:
    name, value = match[1], match[3]
    if not is_secret_name(name) or value == MARK:
        return match[0]
    # `token = tokenizer.decode` in a diff is code; a real token is long and has digits.
    is_token = _WORD.findall(name)[-1].lower() == "token"
    if is_token and (len(value) < _MIN_VALUE_LENGTH or not any(letter.isdigit() for letter in value)):
        return match[0]
    return match[0][: -len(value)] + MARK
