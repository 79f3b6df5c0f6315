"""The script in a response, and the end of a script's error trace: text from a model, in linear time.

Not here: running scripts (exit_jax/sandbox) and grading what they wrote (submissions.py).
"""

import re
from collections.abc import Mapping

from exit_jax.domains.text.surrogates import replace_surrogates
from exit_jax.domains.text.thoughts import final_answer

MAX_STDERR = 1 << 16  # characters looked at, from the end
CUT = "[...]\n"
NO_PATHS: Mapping[str, str] = {}
# No pattern lets two of its parts match the same characters, which would make a failure quadratic in their number.
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(.*)", re.DOTALL)
# what a fence says of Python: "python", "Python3.11", "py title=solution.py", "{.python .numberLines}", "solution.py"; but
# neither "pycon" nor "python-repl", which are sessions
_PYTHON = re.compile(r"\{?\s*\.?(?:i?python|py)[\d.]*(?![\w.+-])|[\w./-]*\.py(?!\w)", re.IGNORECASE)
_FILE = re.compile(r'^([ \t]*File ")([^"\n]*)(", line )', re.MULTILINE)
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
_ESCAPE = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def extract_code(response: str) -> str | None:
    """Return the last complete fenced block of Python in the final answer of a response, None if there is none or it is blank.

    A fence is a line of three or more backticks or tildes. Where none of them names Python, those that name no language count;
    beside a script, they hold what it prints. What thoughts hold does not count (``thoughts.final_answer``): a script that
    itself contains "</think>" is lost.

    A block ends at a bare fence of the same kind, at least as long and indented no further than the opening one (so that an
    example in a docstring ends nothing). A fence with a language in place of the end opens a new block: the one before was
    forgotten, or is the outer of two. What an opening fence is indented by is taken off its lines.

    >>> extract_code("a\\n```python\\nx = 1\\n```\\nb\\n  ```\\n  y = 2\\n  ```\\n```py\\nz = ")
    'x = 1\\n'
    """
    lines = final_answer(response).replace("\r\n", "\n").split("\n")
    found: dict[str, tuple[int, int, int]] = {}  # "python" or "bare" -> first line, line after the last, indent
    opened: tuple[int, int, str, str] | None = None  # first line, indent, fence, kind
    kinds = set()
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if match is None or "`" in match[3]:  # the latter is code within a line
            continue
        indent, fence, info = len(match[1]), match[2], match[3].strip()
        if opened is not None:
            first, indent_opened, fence_opened, kind = opened
            if fence[0] != fence_opened[0] or len(fence) < len(fence_opened) or indent > indent_opened:
                continue
            if not info:
                found[kind] = first, number, indent_opened
                opened = None
                continue
        kind = "bare" if not info else "python" if _PYTHON.match(info) else "other"
        kinds.add(kind)
        opened = number + 1, indent, fence, kind
    wanted = "python" if "python" in kinds else "bare"
    if wanted not in found:
        return None
    first, end, indent = found[wanted]
    code = "\n".join(_dedent(line, indent) for line in lines[first:end])
    return f"{code}\n" if code.strip() else None


def _dedent(line: str, indent: int) -> str:
    """Take off up to ``indent`` spaces or tabs."""
    return line[min(indent, len(line) - len(line.lstrip(" \t"))) :]


def error_tail(stderr: str | bytes, max_chars: int, paths: Mapping[str, str] = NO_PATHS) -> str:
    """Return the end of what a script wrote to stderr, in at most ``max_chars`` characters, by whole lines where it fits.

    What differs from run to run of the same script goes: terminal codes, addresses in memory, and folders. In a trace's
    ``File "..."`` a package's path starts at the package, any other is the file's name alone.

    Args:
      paths: prefixes of the sandbox's and what to write in their place, for messages: {"/run/data": "DATA_DIR"}.
    """
    text = stderr[-4 * MAX_STDERR :].decode("utf-8", errors="replace") if isinstance(stderr, bytes) else stderr
    text = replace_surrogates(text[-MAX_STDERR:])
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", _ESCAPE.sub("", text)).replace("\ufffd", "?")
    text = _FILE.sub(lambda match: f"{match[1]}{_shorten(match[2])}{match[3]}", text)
    for prefix, name in sorted(paths.items(), key=lambda item: -len(item[0])):
        text = text.replace(prefix, name)
    text = _ADDRESS.sub("0x...", text).strip("\n").rstrip()
    if len(text) <= max_chars:
        return text
    start, last = len(text) - max(max_chars - len(CUT), 0), text.rfind("\n") + 1
    if start > last:  # not even the last line fits: it begins with the kind of error
        return text[last : last + max_chars]
    start = text.find("\n", start - 1) + 1
    return (CUT + text[start:])[:max_chars]


def _shorten(path: str) -> str:
    """Return a path from its package on, or the file's name.

    >>> _shorten("/usr/lib/python3.11/site-packages/pandas/io/common.py"), _shorten("/tmp/job7/solution.py")
    ('pandas/io/common.py', 'solution.py')
    """
    for folder in ("/site-packages/", "/dist-packages/"):
        _, found, rest = path.rpartition(folder)
        if found:
            return rest
    return path.rpartition("/")[2]
