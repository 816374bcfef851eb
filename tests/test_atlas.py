"""The pages on equivalences: their formulas are those of the parts, and nothing on them is left out."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from diffkit import registry

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "equivalences").glob("*.md"))

# Derived by hand from the closed forms of the pages: constant, falling with logsnr, or with a maximum.
VERDICTS = {
    "vdm": "vlb",
    "vdm_cifar10": "vlb",
    "ve_sde": "vlb",
    "flow_matching": "monotone",
    "rectified_flow": "neither",
    "ddpm": "neither",
    "iddpm": "neither",
    "simple_diffusion": "neither",
    "vp_sde": "neither",
    "subvp_sde": "neither",
    "edm": "neither",
}

# Relative, over the whole range and over its middle half. The pages' formulas for the two discrete chains
# are limits of many steps, and the second is clipped at its noise end.
TOLERANCES = {"ddpm": (0.3, 1e-2), "iddpm": (10.0, 2e-2)}


@pytest.fixture(scope="module")
def atlas() -> ModuleType:
    spec = importlib.util.spec_from_file_location("atlas", ROOT / "docs" / "atlas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_party_presets() -> set[str]:
    ours = {"diffkit", *(path.name for path in (ROOT / "plugins").iterdir())}
    reports = [report for report in registry.plugins() if report.name in ours]
    return {name for report in reports for name in report.parts.get("preset", ())}


@pytest.mark.parametrize("name", VERDICTS)
def test_weightings_are_the_formulas_of_the_pages(atlas: ModuleType, name: str) -> None:
    whole, middle = TOLERANCES.get(name, (1e-9, 1e-9))
    assert atlas.weighting_deviation(name) < whole
    assert atlas.weighting_deviation(name, 0.5) < middle


def test_a_wrong_formula_would_be_noticed(atlas: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**atlas.CLOSED_FORMS, "flow_matching": atlas.CLOSED_FORMS["iddpm"]}
    monkeypatch.setattr(atlas, "CLOSED_FORMS", wrong)
    assert atlas.weighting_deviation("flow_matching", 0.5) > 0.5


def test_verdicts(atlas: ModuleType) -> None:
    assert {made.name: made.verdict.kind for made in atlas.compositions()} == VERDICTS


def test_every_preset_has_its_place(atlas: ModuleType) -> None:
    markers = [(page, *marker) for page in PAGES for marker in atlas._MARKER.findall(page.read_text())]
    assert {name for _, name, _ in markers} == set(atlas.MARKERS)
    verified = [name for _, kind, rest in markers if kind == "verified" for name in rest.split()]
    assert sorted(verified) == sorted(atlas.CLOSED_FORMS) == sorted(first_party_presets())
    # Each on the page of its plugin.
    for page, kind, rest in markers:
        if kind == "verified":
            assert {atlas._plugins()[name] for name in rest.split()} == {page.stem}


def test_tables_are_filled(atlas: ModuleType) -> None:
    page = atlas.filled((ROOT / "docs" / "equivalences" / "index.md").read_text())
    assert "<!-- atlas" not in page
    count = len(atlas.compositions())
    table = page.partition("## Every preset")[2].partition("## Every pair")[0]
    rows = {row.split("|")[1].strip(" `"): row for row in table.splitlines() if row[:3] == "| `"}
    assert set(rows) == set(registry.available("preset"))
    assert all(str(atlas._of(name).verdict) in row for name, row in rows.items())
    pairs = page.partition("## Every pair")[2]
    assert sum(row.startswith("| `") for row in pairs.splitlines()) == count * (count - 1) // 2
    # Two of which it is known: one model and loss, and a loss that is the bound over a narrower range.
    assert "| `vdm` | `vdm_cifar10` | same | same | 1 |" in pairs
    within = "same within the common range"
    assert f"| `vdm` | `ve_sde` | {within} | {within} | 1 |" in pairs
