"""YAML parsed strictly: no duplicate keys, no tags, no number whose value is not what it looks like.

YAML 1.1 silently reads 010 as 8 and 1:30 as 90; both are refused here. What looks like a date stays text.
"""

from __future__ import annotations

import math
from typing import Any

import yaml

from dist_trainer.strict_json import MAX_DEPTH, MAX_DIGITS


class _Loader(yaml.SafeLoader):
    """SafeLoader lets arbitrary exceptions out for values it cannot construct; this one raises only yaml.YAMLError."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} deep", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _error(f"a tag ({event.tag}) has no place here", event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            anchored = self.anchors.get(event.anchor)
            if anchored is not None and anchored.end_mark is None:
                raise _error(f"*{event.anchor} stands within itself", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _error("a merge key (<<) has no place here", key_node.start_mark)
            key = self.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise _error("a key is a word", key_node.start_mark)
            if key in seen:
                raise _error(f"the key {key!r} is said twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        digits = node.value.lstrip("+-")
        if len(digits) > MAX_DIGITS:
            raise _error(f"a number of {len(digits)} digits", node.start_mark)
        if ":" in digits:
            raise _error(f"YAML reads {node.value} as {self.construct_yaml_int(node)}", node.start_mark)
        if len(digits) > 1 and digits[0] == "0" and digits[1] not in "xb":
            value = self.construct_yaml_int(node)
            raise _error(f"YAML reads {node.value} as {value}: write {value}, or leave out the 0", node.start_mark)
        if not digits.strip("_"):
            raise _error(f"{node.value} is no number", node.start_mark)
        value = self.construct_yaml_int(node)
        assert isinstance(value, int)
        return value

    def construct_number(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            raise _error(f"YAML reads {node.value} as a number of base 60", node.start_mark)
        try:
            value = float(self.construct_yaml_float(node))
        except ValueError:
            raise _error(f"{node.value[:40]} is no number", node.start_mark) from None
        if math.isinf(value) and "inf" not in node.value.lower():
            raise _error(f"a number that is too large: {node.value[:40]}", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(text: str) -> Any:
    """The single document in `text`. Raises yaml.YAMLError; as a yaml.MarkedYAMLError it says where."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
