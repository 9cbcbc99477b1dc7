"""A docstring's first line says what the function does: it begins with a verb."""

import ast
import re

from documents import ROOT

PROPERTIES = ("property", "cached_property")


def _is_property(node):
    names = (getattr(one, "attr", getattr(one, "id", "")) for one in node.decorator_list)
    return any(name in PROPERTIES for name in names)


def _first_lines():
    for path in sorted((ROOT / "anpvs_tf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or _is_property(node):
                continue
            if text := ast.get_docstring(node):
                yield f"{path.relative_to(ROOT)}: {node.name}", text.splitlines()[0]


def test_it_begins_with_a_verb_in_the_third_person():
    found = dict(_first_lines())
    assert len(found) > 500
    assert {
        name: line for name, line in found.items() if not re.match(r"[A-Z][a-z]+s\b", line)
    } == {}
