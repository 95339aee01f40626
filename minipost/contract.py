"""Files that are found by their name: each file of a folder is a method, a task, a way to answer.

A frozen dataclass says what such a file defines.  Its fields without a default must be there, those
with one may be.
"""

import importlib
import pkgutil
from dataclasses import MISSING, fields

from minipost.errors import MinipostError


def names(package):
    """The command-line names of a package's files: test_time/best_of_n.py is best-of-n."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__))


def load(package, name, contract):
    """The file of this name as a `contract`, with the fields `name` and `module` filled in.

    MinipostError says what a file has to define and does not.
    """
    module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    parts = {"name": name, "module": module}
    for field in fields(contract):
        if hasattr(module, field.name) and field.name not in parts:
            parts[field.name] = getattr(module, field.name)
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in parts:
            raise MinipostError(f"{module.__file__}: does not define {field.name}, which every "
                                f"file in {package.__name__.replace('.', '/')}/ has; the folder's "
                                "__init__.py says what it is")
    return contract(**parts)
