"""Commands that list what there is: `nnc passes`, `targets`, `recipes`, `schema`, `doctor`."""

from __future__ import annotations

from nnc.arguments import JsonOption, NameArgument, UseOption
from nnc.commands.output import print_json


def passes(name: NameArgument = None, use: UseOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """List the passes that a recipe can name."""
    from nnc import catalog
    from nnc.display import listings

    entries = catalog.passes(use)
    if name is None:
        print_json(list(entries.values())) if as_json else listings.show_list(entries, ("effect",))
    else:
        entry = catalog.find("pass", name, entries)
        print_json(entry) if as_json else listings.show_pass(entry)


def targets(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the targets, or show the figures of one; x86 shows what was detected here."""
    from nnc import catalog
    from nnc.display import listings

    if name is None:
        entries = catalog.targets()
        print_json(list(entries.values())) if as_json else listings.show_list(entries, ("units", "modes"))
    else:
        entry = catalog.target(name)
        print_json(entry) if as_json else listings.show_target(entry)


def recipes(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the recipes that nnc ships, or print one: a start for your own."""
    from nnc import catalog
    from nnc.display import listings

    entries = catalog.recipes()
    if name is None:
        print_json(list(entries.values())) if as_json else listings.show_list(entries, ())
    else:
        entry = catalog.find("recipe", name, entries)
        print_json(entry) if as_json else print(entry["toml"], end="")


def schema(use: UseOption = []) -> None:  # noqa: B006
    """Print the JSON Schema of recipes, for editors."""
    from nnc import recipe

    print_json(recipe.schema(use))


def doctor(as_json: JsonOption = False) -> None:
    """Show which optional tools are there, and how to get the others."""
    from dataclasses import asdict

    from nnc.display import listings
    from nnc.doctor import checks

    found = checks()
    if as_json:
        print_json([asdict(check) for check in found])
    else:
        listings.show_checks(found)
