"""A griffe extension, so that signatures on the API pages read as they do in the source.

griffe reads the source without importing it, which keeps the annotations as they are written. Two
things it cannot see that way, and they are added here: the constructor that Equinox makes from a
module's fields, and that a string inside a jaxtyping annotation is a shape and not an expression.
"""

import ast
import importlib
import inspect
from typing import Any

import equinox as eqx
import griffe


class EquinoxConstructors(griffe.Extension):
    """Adds the constructors that Equinox makes, and keeps shapes as written."""

    def on_function_instance(self, *, node: Any, func: griffe.Function, **kwargs: Any) -> None:
        """Called by griffe for each function that it reads."""
        del kwargs
        if not isinstance(node, ast.FunctionDef):
            return
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            if (text := _with_shape(argument.annotation)) is not None:
                func.parameters[argument.arg].annotation = text
        if (text := _with_shape(node.returns)) is not None:
            func.returns = text

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called by griffe for each package that it has read."""
        del kwargs
        self._visit(pkg)

    def _visit(self, module: griffe.Module) -> None:
        for member in list(module.members.values()):
            if member.is_alias:
                continue
            if isinstance(member, griffe.Module):
                self._visit(member)
            elif isinstance(member, griffe.Class) and "__init__" not in member.members:
                self._add_constructor(member)

    def _add_constructor(self, cls: griffe.Class) -> None:
        made = getattr(importlib.import_module(cls.module.path), cls.name, None)
        if not (inspect.isclass(made) and issubclass(made, eqx.Module)):
            return
        if cls.name.startswith("Abstract"):
            return
        parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
        for name, parameter in inspect.signature(made).parameters.items():
            field = cls.members.get(name)
            parameters.append(
                griffe.Parameter(
                    name,
                    annotation=field.annotation if isinstance(field, griffe.Attribute) else None,
                    kind=griffe.ParameterKind(parameter.kind.description),
                    default=None if parameter.default is parameter.empty else repr(parameter.default),
                )
            )
        constructor = griffe.Function("__init__", parameters=griffe.Parameters(*parameters))
        cls.set_member("__init__", constructor)


def _with_shape(annotation: ast.expr | None) -> str | None:
    """The source of an annotation that holds a string, `None` for any other."""
    if annotation is None:
        return None
    parts = ast.walk(annotation)
    if any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts):
        return ast.unparse(annotation).replace("'", '"')
    return None
