"""Files that are found by their name: each file of a folder is a method, a task, a way to answer.

A frozen dataclass says what such a file defines.  Its fields without a default must be there, those
with one may be.

`load` imports a file.  `outline` reads some of its constants and classes from the source, without
what the rest of the file imports: torch takes a second and more.
"""

import ast
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from dataclasses import MISSING, fields
from importlib.abc import InspectLoader
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from minipost.errors import MinipostError, check_frozen

LIGHT = {"minipost.errors", *sys.stdlib_module_names}  # what a file that is outlined may import
DARK = {"globals", "locals", "vars", "eval", "exec", "__import__", "__name__", "__dict__"}


def names(package):
    """The command-line names of a package's files: test_time/best_of_n.py is best-of-n."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__))


def titles(package):
    """{command-line name: what its file begins with} of all of a package.

    Without the paper, and without the name where the text begins with it.
    """
    def bare(text):
        return "".join(filter(str.isalnum, text.lower()))

    found = {}
    for name in names(package):
        source = (Path(package.__path__[0]) / f"{name.replace('-', '_')}.py").read_text("utf-8")
        first = source.removeprefix('"""').partition('"""')[0].partition("\n\n")[0]
        title = " ".join(first.split()).partition(" (")[0].rstrip(".:")
        head, _, rest = title.partition(": ")
        found[name] = rest if rest and bare(head) == bare(name) else title
    return found


def required(contract):
    """The names that every file has to define."""
    return {f.name for f in fields(contract)
            if f.default is MISSING and f.default_factory is MISSING} - {"name", "module"}


def load(package, name, contract):
    """The file of this name as a `contract`, with the fields `name` and `module` filled in.

    MinipostError says what a file has to define and does not, or why it cannot be imported.
    """
    module = imported(f"{package.__name__}.{name.replace('-', '_')}")
    parts = {"name": name, "module": module}
    for field in fields(contract):
        if hasattr(module, field.name) and field.name not in parts:
            parts[field.name] = getattr(module, field.name)
        if field.name in required(contract) - set(parts):
            raise MinipostError(f"{module.__file__}: does not define {field.name}, which every "
                                f"file in {package.__name__.replace('.', '/')}/ has; the folder's "
                                "__init__.py says what it is")
    if "Config" in parts:
        check_frozen(parts["Config"], module.__file__)
    return contract(**parts)


def imported(module):
    """The module of this dotted name.  MinipostError with the file and the line that fails."""
    try:
        return importlib.import_module(module)
    except MinipostError:
        raise
    except Exception as error:
        file = f"{module.replace('.', '/')}.py"
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if Path(frame.filename).name == Path(file).name]
        where = f"{file}, line {lines[-1]}" if lines else file
        raise MinipostError(f"{where}: cannot be imported ({type(error).__name__}: {error})"
                            ) from error


# ---- a file without what it imports

class Unclear(Exception):
    """The statements that would be executed may give other values than an import."""


def outline(package, name, contract, wanted):
    """The file of this name as a `contract` that knows its docstring and the `wanted` names alone.

    Only the statements that make these are executed.  None where the source does not show for
    certain that an import would give the same: such a file has to be imported.
    """
    try:
        source = Outline(package, name.replace("-", "_"))
        if not required(contract) <= set(source.made):
            return None
        module = source.make(wanted)
    except Unclear:
        return None
    known = {n: getattr(module, n) for n in wanted if hasattr(module, n)}
    return contract(**dict.fromkeys(required(contract)) | known | {"name": name, "module": module})


class Outline(InspectLoader):
    """A loader that leaves out statements.  `made` is {name: the statement that defines it}.

    Unclear where a statement does more than to define names, or where a name is defined twice.
    """

    def __init__(self, package, file):
        self.package, self.name = package, f"{package.__name__}.{file}"
        spec = importlib.util.find_spec(self.name)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            raise Unclear("not a source file")
        self.path, self.body, self.made = spec.loader.path, [], {}
        try:
            self.text = spec.loader.get_source(self.name) or ""
            self.tree = ast.parse(self.text)
        except (OSError, ImportError, SyntaxError, ValueError) as error:
            raise Unclear from error
        for name, statement in definitions(self.tree.body):
            if name in self.made or name == "*":
                raise Unclear(name)
            self.made[name] = statement
        if DARK & mentioned(self.tree) or any(isinstance(n, ast.Global)
                                              for n in ast.walk(self.tree)):
            raise Unclear("names that are not written out")

    def make(self, wanted):
        """A module with those of the wanted names that the file defines."""
        kept, new = set(), {"annotations", *wanted}  # the first is of __future__
        while new := {name for name in new if name in self.made} - kept:
            kept |= new
            new = set().union(*(mentioned(self.made[name]) for name in new))
        imports = [n for n, made in self.made.items()
                   if n in kept and isinstance(made, ast.Import | ast.ImportFrom)]
        values = kept - set(imports)
        for name, statement in self.made.items():
            if name not in kept and mentioned(statement) & values:
                raise Unclear(f"{name} may change what it mentions")
            if name in kept and any(map(quoted, ast.walk(statement))):
                raise Unclear(f"{name} has an annotation that is a string")
        module = ModuleType(f"{self.name}:outline")
        module.__file__ = self.path
        sys.modules[module.__name__] = module  # where `inspect` looks for the source of a class
        self.body = self.tree.body[:1] if ast.get_docstring(self.tree) else []
        for name in imports:
            statement = self.made[name]
            if getattr(statement, "module", "") == self.package.__name__:
                vars(module)[name] = self.sibling(name, [self.made[n] for n in values])
            elif not light(statement):
                raise Unclear(f"{name} is imported")
            else:
                self.body.append(statement)
        self.body += [s for s in self.tree.body if s in {self.made[n] for n in values}]
        try:
            self.exec_module(module)
        except Exception as error:
            raise Unclear from error
        return module

    def get_source(self, fullname):
        return self.text

    def get_code(self, fullname):
        return compile(ast.Module(self.body, []), self.path, "exec", dont_inherit=True)

    def sibling(self, name, readers):
        """The outline of another file of the folder, with the attributes that the readers ask of.
        """
        nodes = [node for reader in readers for node in ast.walk(reader)]
        asked = [node.attr for node in nodes if isinstance(node, ast.Attribute)
                 and isinstance(node.value, ast.Name) and node.value.id == name]
        if len(asked) < sum(isinstance(node, ast.Name) and node.id == name for node in nodes):
            raise Unclear(f"{name} is not only asked for what it defines")
        source = Outline(self.package, self.made[name].names[0].name)
        if not set(asked) <= set(source.made):
            raise Unclear(f"{name} does not define all of {asked}")
        return source.make(asked)


def definitions(body):
    """(name, statement) of all that a file defines at its top.  Each import stands alone."""
    for at, node in enumerate(body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                one = type(node)(**{**dict(ast.iter_fields(node)), "names": [alias]})
                yield (alias.asname or alias.name.partition(".")[0],
                       ast.copy_location(one, node))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if not isinstance(part, ast.Name):
                        raise Unclear("an assignment to a part of something")
                    yield part.id, node
        elif at or not isinstance(node, ast.Expr):
            raise Unclear("a statement that defines nothing")


def mentioned(node):
    """All names that a piece of code reads."""
    return {n.id for n in ast.walk(node)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def light(node):
    """Whether an import is of the standard library or of what costs as little."""
    full = node.names[0].name if isinstance(node, ast.Import) else node.module
    return not getattr(node, "level", 0) and bool({full, full.partition(".")[0]} & LIGHT)


def quoted(node):
    """Whether a node is an annotation in which a string stands for a type."""
    parts: list[ast.AST] = [node.annotation] if isinstance(node, ast.AnnAssign) else []
    while parts:
        part = parts.pop()
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            return True
        if not (isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Literal"):
            parts += ast.iter_child_nodes(part)
    return False
