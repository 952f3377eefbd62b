"""Files and functions stay readable."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

BROAD = ("Exception", "BaseException")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 15
MAX_PARAMETERS = 6
MAX_WITH_KEYWORD_ONLY = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def functions() -> Iterator[tuple[str, Function]]:
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_no_file_is_too_long():
    long = {str(file): count for file in sources() if (count := file.read_text().count("\n")) > MAX_FILE_LINES}
    assert long == {}


def test_no_function_is_too_long():
    assert {name: lines(node) for name, node in functions() if lines(node) > MAX_FUNCTION_LINES} == {}


def test_the_usual_function_is_short():
    assert statistics.median(lines(node) for _, node in functions()) <= MAX_MEDIAN_LINES


def test_no_function_takes_too_much():
    wide = []
    for name, node in functions():
        positional = (
            len(node.args.posonlyargs)
            + len(node.args.args)
            - (node.args.args[:1] != [] and node.args.args[0].arg in ("self", "cls"))
        )
        if positional > MAX_PARAMETERS or positional + len(node.args.kwonlyargs) > MAX_WITH_KEYWORD_ONLY:
            wide.append(name)
    assert wide == []


def test_no_exception_is_swallowed_without_being_named():
    silent = []
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in BROAD)
            if broad and all(isinstance(item, ast.Pass | ast.Continue) for item in node.body):
                silent.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert silent == []
