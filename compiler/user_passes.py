"""Passes of third parties: Python files that a recipe names with `use = ["my_pass.py"]`."""

import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import get_args

from nnc.errors import NncError
from nnc.rewrite import Effect, Pass

_HINT = "a pass is a class derived from nnc.rewrite.PatternPass or Pass, with a name and an effect"


def load(path: Path) -> list[type[Pass]]:
    """Run the file and return the passes that it defines, in its order.

    Whatever goes wrong in the file is an NncError that names the file and the line.
    """
    if path.suffix != ".py" or not path.is_file():
        raise NncError(f"{path}: no such Python file", "paths in 'use' are relative to the recipe")
    module = _imported(path)
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Pass)]
    for each in classes:
        for key in ("name", "effect"):
            if key in each.model_fields:
                hint = f'write {key} = "..." without a type'
                raise NncError(f"{path}: {each.__name__}: {key} is no parameter", hint)
    own = [each for each in dict.fromkeys(classes) if each.__module__ == module.__name__ and "name" in vars(each)]
    if not own:
        raise NncError(f"{path}: defines no pass", _HINT)
    for each in own:
        _check(each, path)
    return own


def _imported(path: Path) -> ModuleType:
    name = f"nnc.use:{path.resolve()}"  # unique, so that two files of one name in two folders don't meet
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the suffix .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks up the annotations of a class there
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a recipe's folder is the user's
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise NncError(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # it may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NncError(f"{path}:{_line(error, path)}: {type(error).__name__}: {reason}") from error
    finally:
        sys.dont_write_bytecode = before
    return module


def _line(error: BaseException, path: Path) -> int:
    """The last line of the file that the error passed through."""
    lines = [
        frame.lineno or 1
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path.absolute()
    ]
    return lines[-1] if lines else 1


def _check(pass_: type[Pass], path: Path) -> None:
    place = f"{path}: {pass_.__name__}"
    if not isinstance(pass_.name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", pass_.name):
        raise NncError(f"{place}: name must be words joined by hyphens, not {pass_.name!r}", 'such as "fold-batchnorm"')
    effect = getattr(pass_, "effect", None)
    if effect not in get_args(Effect):
        wanted = "'exact', 'approximate' or 'trained'"
        raise NncError(f"{place}: effect must be {wanted}" + (f", not {effect!r}" if effect else ""))
