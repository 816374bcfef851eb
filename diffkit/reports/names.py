"""The settings of runs, their differences, and names made from them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from diffkit.configs import MAY_CHANGE, defaults, find, flat, upgraded
from diffkit.registry import KINDS, name_of

SEED: Final = "train.seed"

LONGEST: Final = 72
"""Names with more characters are shortened."""

_TARGET: Final = "._target_"
# The length of training distinguishes variants; what is evaluated and drawn, and how often, does not.
_IGNORED: Final = {SEED, *MAY_CHANGE} - {"train.steps"}


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that define the variant of a run, by dotted names.

    A part's own is `KIND._target_`, its import path. Options added after the run have their defaults.

    **Arguments:** `config`: the configuration, as in `config.yaml`.
    """
    return {
        name: value
        for name, value in flat(upgraded(config)).items()
        if name not in _IGNORED and not name.endswith("._partial_")
    }


def identity(settings: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """Equal for runs of one variant; null equals absence."""
    return frozenset((n, _hashable(value)) for n, value in settings.items() if value is not None)


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    return str(value)


class Naming:
    """The settings of variants side by side.

    **Arguments:** `variants`: the result of `read_settings` for each; no two are the same.

    **Attributes:** `names`: a name for each variant, made of the settings in which they differ;
    `differing`: these settings, in the order of the configuration, with the text for each variant, `None`
    where a variant lacks the setting; `common`: the texts of the other settings.
    """

    names: list[str]
    differing: dict[str, list[str | None]]
    common: dict[str, str]

    def __init__(self, variants: Sequence[Mapping[str, Any]]):
        self._variants, self._differing = variants, []
        self.differing, self.common = {}, {}
        every = list(dict.fromkeys(name for settings in variants for name in settings))
        # Kinds stay together, even if some of their options come from another variant.
        kinds = list(dict.fromkeys(name.partition(".")[0] for name in every))
        for name in sorted(every, key=lambda name: kinds.index(name.partition(".")[0])):
            shown, texts = name.removesuffix(_TARGET), self._texts(name)
            if len({_hashable(settings.get(name)) for settings in variants}) > 1:
                self._differing.append(name)
                self.differing[shown] = texts
            elif name != "train._target_":
                self.common[shown] = next(text for text in texts if text is not None)
        self.names = self._names()

    def _texts(self, name: str) -> list[str | None]:
        if not name.endswith(_TARGET):
            return [written(s[name]) if name in s else None for s in self._variants]
        labels = {s[name]: _label(name, s[name]) for s in self._variants if name in s}
        known = list(labels.values())
        # Their modules distinguish two parts of the same name.
        labels = {t: label if known.count(label) == 1 else t for t, label in labels.items()}
        return [labels[s[name]] if name in s else None for s in self._variants]

    def _names(self) -> list[str]:
        if not self._differing:
            return ["all"] * len(self._variants)
        terms = {name: self._terms(name) for name in self._differing}
        names = _joined(list(terms.values()))
        if max(map(len, names)) <= LONGEST:
            return names
        # Parts first, then options; only those that distinguish variants not yet distinguished.
        kept: list[list[str | None]] = [[None] * len(names)]
        for name in sorted(terms, key=lambda name: not name.endswith(_TARGET)):
            if len(set(_joined([*kept, terms[name]]))) > len(set(_joined(kept))):
                kept.append(terms[name])
        return [f"{name} ..." if name else "..." for name in _joined(kept)]

    def _terms(self, name: str) -> list[str | None]:
        """What a setting adds to the name of each variant.

        Where the parts of a kind differ, options at their defaults add nothing.
        """
        shown, part = name.removesuffix(_TARGET), self._enclosing(name)
        terms = []
        for settings, text in zip(self._variants, self.differing[shown], strict=True):
            silent = part in self._differing and _is_default(settings, str(part), shown, name)
            terms.append(None if silent else f"{shown}={'null' if text is None else text}")
        return terms

    def _enclosing(self, name: str) -> str | None:
        """The setting that names the part of an option."""
        prefix = name.removesuffix(_TARGET)
        while "." in prefix:
            prefix = prefix.rpartition(".")[0]
            if any(f"{prefix}{_TARGET}" in settings for settings in self._variants):
                return f"{prefix}{_TARGET}"
        return None


def _is_default(settings: Mapping[str, Any], part: str, shown: str, name: str) -> bool:
    if (value := settings.get(name)) is None:
        return True
    option = shown.removeprefix(f"{part.removesuffix(_TARGET)}.")
    known = defaults(settings[part]) if part in settings else {}
    return option in known and _hashable(known[option]) == _hashable(value)


def _joined(columns: Sequence[Sequence[str | None]]) -> list[str]:
    return [", ".join(filter(None, row)) for row in zip(*columns, strict=True)]


def _label(name: str, target: str) -> str:
    """The registered name of a part, or the last piece of its import path."""
    kind = name.removesuffix(_TARGET).rpartition(".")[2]
    made = find(target)
    known = name_of(kind, made) if kind in KINDS and made is not None else None
    return known or target.rpartition(".")[2]
