# SPDX-License-Identifier: Apache-2.0
"""What comes with the package: documentation, stubs, and no needless imports."""

import ast
import inspect
import pathlib
import subprocess
import sys

import mixgemm
from mixgemm import _core


def test_every_public_name_is_documented():
    for name in mixgemm.__all__:
        thing = getattr(mixgemm, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_") and member != "code":
                    assert inspect.getdoc(value) or isinstance(value, (str, int, type(None))), (
                        name, member)


def test_every_public_function_is_annotated():
    for name in mixgemm.__all__:
        thing = getattr(mixgemm, name)
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)


def test_stubs_name_all_that_the_extension_has():
    folder = pathlib.Path(mixgemm.__file__).parent
    assert (folder / "py.typed").exists()
    tree = ast.parse((pathlib.Path(_core.__file__).parent / "_core.pyi").read_text())
    names = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    names |= {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    assert {name for name in dir(_core) if not name.startswith("__")} <= names


def test_importing_mixgemm_imports_no_framework():
    code = ("import sys, mixgemm; "
            "print([m for m in ('torch', 'cupy', 'jax', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_extension_offers_nothing_but_its_entry():
    """Symbols of the library inside must not meet those of a libmixgemm.so in the same process."""
    try:
        done = subprocess.run(["nm", "-D", "--defined-only", _core.__file__], capture_output=True,
                              text=True, check=True)
    except FileNotFoundError:
        import pytest
        pytest.skip("no nm here")
    symbols = [line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()]
    assert symbols == ["PyInit__core"]
