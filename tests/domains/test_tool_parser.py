"""Test what a response is taken for: what a careful person would accept, and nothing else."""

import json
import time

import pytest

from exit_jax.domains.tool_use.parser import MAX_CALL_CHARS, MAX_STARTS, Action, Markers, parse, render_call

FUNCTIONS = {
    "ls": {"parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": []}},
    "pwd": {"parameters": {"type": "object", "properties": {}}},
    "echo": {"parameters": {"properties": {"content": {}, "file_name": {}}, "required": ["content"]}},
}
LS = Action("call", "ls", {"a": True})
CALL = '<tool_call>{"name": "ls", "arguments": {"a": true}}</tool_call>'


def echo(content, text=None):
    """Return the response and the action of an echo."""
    arguments = {"content": content}
    return text or render_call("echo", arguments), Action("call", "echo", arguments)


@pytest.mark.parametrize(
    ("response", "action"),
    [
        (CALL, LS),
        (f"I look around first.\n\n{CALL}\n \t", LS),
        ('<tool_call>\n{"name": "ls",\n "arguments": {"a": true}}\n</tool_call>\n', LS),
        ('<tool_call>{"arguments": {"a": true}, "name": "ls"}</tool_call>', LS),
        (f"```\n{CALL}\n```", LS),
        (f"```json\n{CALL}\n```\n", LS),
        ('<tool_call>\n```json\n{"name": "ls", "arguments": {"a": true}}\n```\n</tool_call>', LS),
        ('<tool_call>{"name": "ls", "arguments": {"a": true,},}</tool_call>', LS),
        ('<tool_call>{"name": "ls"}</tool_call>', Action("call", "ls")),
        ('<tool_call>{"name": "pwd", "arguments": {}}</tool_call>', Action("call", "pwd")),
        (f"I shall end with <tool_call> now, not <finished>: {CALL}", LS),
        echo("a, ]", '<tool_call>{"name": "echo", "arguments": {"content": "a, ]",}}</tool_call>'),
        echo(
            '5" wide, }',
            'It is 5" wide. <tool_call>{"name": "echo", "arguments": {"content": "5\\" wide, }",}}</tool_call>',
        ),
        echo("two\nlines\t", '<tool_call>{"name": "echo", "arguments": {"content": "two\nlines\t"}}</tool_call>'),
        echo("</tool_call> <finished> <tool_call>"),
        echo("\u2028 😀 é \0 ' \" \\ `", None),
        echo("😀", '<tool_call>{"name": "echo", "arguments": {"content": "\\ud83d\\ude00"}}</tool_call>'),
        echo([1, 2.5, None, {"a": [True]}]),
        ("<finished>", Action("finished")),
        ("All done.\n<finished>\n", Action("finished")),
        ("```\n<finished>\n```", Action("finished")),
        ("No <tool_call> is needed, I could say <error>.\n<finished>", Action("finished")),
        ("There is no such file. <error>", Action("error")),
        (f"<think>Shall I? {CALL} or <finished></think>\n\n{CALL}", LS),
        (f"<think><tool_call>oh</tool_call></think>{CALL}", LS),
        (f"<think>{CALL * 9}</think><finished>", Action("finished")),
        ("the prompt began the thought, <error>?</think>\n<finished>", Action("finished")),
    ],
)
def test_accepted(response, action):
    assert parse(response, FUNCTIONS) == action


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("", "End your response with one call"),
        ("Let me think", "End your response with one call"),
        ("<finished> and so on", "End your response with one call"),
        ("FINISHED", "End your response with one call"),
        ('{"name": "ls", "arguments": {}}', "End your response with one call"),
        ("<tool_call>", "Not a call: Expecting value"),
        (f"<think>I shall say {CALL}", "End your response with one call"),
        ("<think>I shall say <finished>", "End your response with one call"),
        ("<think>I shall say <finished></think>", "End your response with one call"),
        (f"{CALL}<think>or", "End your response with one call"),
        ("<tool_call></tool_call>", "Not a call: Expecting value"),
        ("<tool_call>ls(a=True)</tool_call>", "Not a call: Expecting value"),
        ('<tool_call>{"name": "ls", "arguments": {"a": True}}</tool_call>', "Not a call: Expecting value"),
        ("<tool_call>{'name': 'ls'}</tool_call>", "Not a call: Expecting property name"),
        ('<tool_call>{"name": "ls"', "Not a call: Expecting"),
        ('<tool_call>{"name": "ls"}', "not followed by </tool_call>"),
        ('<tool_call>{"name": "ls"} {"name": "ls"}</tool_call>', "not followed by </tool_call>"),
        ('<tool_call>{"name": "ls"</tool_call>\n<finished>', "Not a call: Expecting"),
        ('<tool_call>{"name": "ls", "name": "pwd"}</tool_call>', "a key appears twice"),
        ('<tool_call>{"name": "ls", "arguments": {"a": NaN}}</tool_call>', "NaN is no JSON value"),
        ('<tool_call>{"name": "ls", "arguments": {"a": -Infinity}}</tool_call>', "-Infinity is no JSON value"),
        ('<tool_call>{"name": "ls", "arguments": {"a": 1e999}}</tool_call>', "must be finite"),
        (
            f'<tool_call>{{"name": "ls", "arguments": {{"a": {"9" * 5000}}}}}</tool_call>',
            "Not a call: Exceeds the limit",
        ),
        (f"{CALL}{CALL}", "One call a response"),
        (f"{CALL}\n<finished>", "Nothing may follow a call"),
        (f"{CALL}\nIt returned: []", "Nothing may follow a call"),
        (f"{CALL} <tool_call>", "Not a call"),
        (f"{CALL} <tool_call>oh</tool_call>", "Not a call"),
        ("<tool_call>[]</tool_call>", 'the keys "name" and "arguments"'),
        ("<tool_call>5</tool_call>", 'the keys "name" and "arguments"'),
        ('<tool_call>{"name": 5, "arguments": {}}</tool_call>', 'the keys "name" and "arguments"'),
        ('<tool_call>{"name": "ls", "parameters": {}}</tool_call>', 'the keys "name" and "arguments"'),
        ('<tool_call>{"name": "ls", "arguments": "{}"}</tool_call>', '"arguments" must be a JSON object'),
        ('<tool_call>{"name": "ls", "arguments": [true]}</tool_call>', '"arguments" must be a JSON object'),
        ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', 'no function "rm"'),
        ('<tool_call>{"name": "__import__", "arguments": {}}</tool_call>', 'no function "__import__"'),
        ('<tool_call>{"name": "ls", "arguments": {"b": 1}}</tool_call>', 'ls has no parameter "b"; its parameters: a'),
        ('<tool_call>{"name": "pwd", "arguments": {"b": 1}}</tool_call>', "its parameters: none"),
        (
            '<tool_call>{"name": "echo", "arguments": {"file_name": "f"}}</tool_call>',
            "echo needs the arguments content",
        ),
        ('<tool_call>{"name": "echo", "arguments": {"content": "\\ud800"}}</tool_call>', "surrogate"),
        (f'<tool_call>{{"name": "echo", "arguments": {{"content": {"[" * 50}{"]" * 50}}}}}</tool_call>', "nested"),
        (f"<tool_call>{'[' * 15000}</tool_call>", "Not a call"),
        (f"<tool_call>{' ' * MAX_CALL_CHARS}{{}}</tool_call>", "longer than"),
        ("<tool_call>" * (MAX_STARTS + 1), "more than"),
    ],
)
def test_rejected(response, message):
    action = parse(response, FUNCTIONS)
    assert action.kind == "invalid"
    assert message in action.message
    assert len(action.message) < 400


def test_a_long_name_is_cut_in_the_message():
    name = "\n" * 10_000
    assert len(parse(render_call(name, {}), FUNCTIONS).message) < 200


def test_markers_can_be_others():
    markers = Markers("[call]", "[/call]", "[done]", "[stuck]")
    assert parse(render_call("ls", {"a": True}, markers), FUNCTIONS, markers) == LS
    assert parse("[done]", FUNCTIONS, markers).kind == "finished"
    assert parse("[stuck]", FUNCTIONS, markers).kind == "error"
    assert parse(CALL, FUNCTIONS, markers).kind == "invalid"


@pytest.mark.parametrize(
    "response",
    [
        "<tool_call>" * 10**6,
        "<tool_call>" * MAX_STARTS + '"\\' * 5000,
        "<tool_call>" * MAX_STARTS + '{"a": [' * 2000,
        ('<tool_call>{"name": "echo", "arguments": {"content": "' + "," * 1500) * MAX_STARTS,
        "<tool_call>" + "," * 19_000,
        "<tool_call>" + ", " * 9_000,
        "`" * 10**6,
        " " * 10**6 + "x",
        "\n" * 10**6,
    ],
)
def test_hostile_responses_are_read_at_once(response):
    started = time.process_time()
    assert parse(response, FUNCTIONS).kind == "invalid"
    assert time.process_time() - started < 0.5


def test_render_call_is_read_back():
    for value in ("</tool_call>", '"}}', "{", "\\", "\u2028", 0, -1.5, [], {}, None):
        assert parse("so " + render_call("echo", {"content": value}), FUNCTIONS).arguments == {"content": value}
    assert json.loads(render_call("ls", {})[len("<tool_call>") : -len("</tool_call>")]) == {
        "name": "ls",
        "arguments": {},
    }
