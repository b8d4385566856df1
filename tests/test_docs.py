"""Docstrings: every public name has one in numpydoc's form, with an example that runs; README's examples run too."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil

import attile
import pytest

PUBLIC = [name for name in attile.__all__ if name != "__version__"]
MODULES = ["attile"] + [f"attile.{m.name}" for m in pkgutil.iter_modules(attile.__path__) if not m.name.startswith(("_", "cython"))]

# numpydoc's checks that say nothing here: GL01 where the text begins, ES01 no extended summary, SA01 no see also, SA04 no
# description in it, EX01 examples (asked for below), YD01 yields.
LEFT_OUT = {"GL01", "ES01", "SA01", "SA04", "EX01", "YD01"}


def documented():
    for name in PUBLIC:
        yield f"attile.{name}"
    for module in MODULES[1:]:
        for name, value in vars(importlib.import_module(module)).items():
            if inspect.isfunction(value) and value.__module__ == module and not name.startswith("_") and name not in PUBLIC:
                yield f"{module}.{name}"


@pytest.mark.parametrize("name", sorted(set(documented())))
def test_numpydoc(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    faults = [f"{code} {text}" for code, text in validate(name)["errors"] if code not in LEFT_OUT]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", PUBLIC)
def test_has_an_example(name):
    examples = doctest.DocTestFinder(recurse=False).find(getattr(attile, name), name)
    assert examples
    assert examples[0].examples, f"attile.{name} has no example"


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, threads):
    threads(0)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_parameter_of_the_contract_is_described():
    scrape = pytest.importorskip("numpydoc.docscrape").FunctionDoc
    for name in ("flash_attention", "flash_attention_with_kvcache", "merge_states", "explain", "mla_attention"):
        fn = getattr(attile, name)
        described = [p.name for p in scrape(fn)["Parameters"]]
        expected = [("*" * (p.kind == p.VAR_POSITIONAL) + "**" * (p.kind == p.VAR_KEYWORD)) + p.name for p in inspect.signature(fn).parameters.values()]
        assert described == expected


def test_files_say_what_they_are():
    """Each module opens with a docstring."""
    for path in pathlib.Path(attile.__file__).parent.glob("*.py"):
        assert path.read_text().startswith(('"""', "r'''")), path.name
