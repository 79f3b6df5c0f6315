"""An extension of griffe: fields that comments describe, as those of dataclasses, are listed below their class's docstring."""

import io
import re
import tokenize

import griffe


def comment_of(attribute: griffe.Attribute, lines: list[str]) -> str:
    """Return the comment at the end of a field's lines, or else the one above them."""
    source = "\n".join(lines[attribute.lineno - 1 : attribute.endlineno])
    tokens = tokenize.generate_tokens(io.StringIO(source.strip() + "\n").readline)
    within = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    above, place = [], attribute.lineno - 2
    while not within and lines[place].strip().startswith("#"):
        above.insert(0, lines[place].strip().lstrip("# "))
        place -= 1
    return " ".join(within or above)


class FieldComments(griffe.Extension):
    """Adds a section with the fields of a class, if its docstring has none."""

    def on_class(self, *, cls, **kwargs):
        """Read the comments of a class's fields."""
        fields = [field for name, field in cls.members.items() if field.is_attribute and not name.startswith("_")]
        told = {field.name: comment_of(field, cls.lines_collection[cls.filepath]) for field in fields if field.lineno}
        if cls.docstring is None or "Attributes:" in cls.docstring.value or not any(told.values()):
            return
        escaped = {name: re.sub(r"([\[\]<*_])", r"\\\1", comment) for name, comment in told.items()}
        rows = "\n".join(f"  {name}: {comment or '&nbsp;'}" for name, comment in escaped.items())
        cls.docstring.value += f"\n\nAttributes:\n{rows}"
