"""The calibration sets of a study, by content: each is made once and kept in the cache, whoever asks for it again."""

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

from calibrune.calibration.calibration_set import MANIFEST_FILE, CalibrationSet
from calibrune.calibration.spec import prepare_calibration
from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.checkpoint import versions
from calibrune.durable import keeping
from calibrune.errors import CalibrationError, OutputError
from calibrune.lm.loading import LanguageModel, cache_folder
from calibrune.seeds import rank_of, seed_for
from calibrune.study.spec import Recipe, hash_of, located

IN_MEMORY = 4


class SetStore:
    """Calibration sets for one model."""

    def __init__(self, lm: LanguageModel, data: Path | None) -> None:
        self._lm = lm
        self._data = data
        self._sources: dict[Recipe, str] = {}
        self._recent: OrderedDict[str, CalibrationSet] = OrderedDict()

    def source(self, recipe: Recipe) -> str:
        """Hash of what the sets are made from: the content of files, the commit of a hub's dataset, settings."""
        if recipe not in self._sources:
            prepared = prepare_calibration(
                located(recipe.spec, self._data), n_samples=recipe.pool or recipe.samples, seq_len=recipe.seq_len
            )
            self._sources[recipe] = hash_of([prepared.describe(self._lm), describe_tokenizer(self._lm.tokenizer)])
        return self._sources[recipe]

    def get(self, recipe: Recipe, seed: int | None) -> CalibrationSet:
        """The set of a recipe and a seed; None: it takes none.

        Raises:
            CalibruneError: it cannot be made.
        """
        seed = seed or 0
        if recipe.pool is not None:
            whole = self._made(recipe, 0)
            return draw(whole, recipe.samples or whole.n_samples, seed)
        return self._made(recipe, seed)

    def _made(self, recipe: Recipe, seed: int) -> CalibrationSet:
        key = hash_of([self.source(recipe), seed, versions()])
        if key not in self._recent:
            self._recent[key] = self._kept(recipe, seed, cache_folder() / "sets" / key)
        self._recent.move_to_end(key)
        while len(self._recent) > IN_MEMORY:
            self._recent.popitem(last=False)
        return self._recent[key]

    def _kept(self, recipe: Recipe, seed: int, folder: Path) -> CalibrationSet:
        try:
            return CalibrationSet.load(folder)
        except CalibrationError:
            if (folder / MANIFEST_FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)  # damaged
        n = recipe.pool or recipe.samples
        spec = located(recipe.spec, self._data)
        made = prepare_calibration(spec, n_samples=n, seq_len=recipe.seq_len, seed=seed)(self._lm)
        with keeping("a calibration set", folder):
            try:
                made.save(folder)
            except OutputError:
                # another worker may have written it since; what is there must be the same
                if not folder.exists() or CalibrationSet.load(folder).fingerprint != made.fingerprint:
                    raise
        return made


def draw(pool: CalibrationSet, n: int, seed: int) -> CalibrationSet:
    """`n` samples of a pool; the first 64 of 128 are those of 64."""
    key = seed_for(seed, "pool")
    chosen = sorted(range(pool.n_samples), key=lambda i: rank_of(key, str(i)))[:n]
    kept = ("source", "tokenizer", "windows")
    manifest: dict[str, Any] = {name: pool.manifest[name] for name in kept if name in pool.manifest}
    if "document_ids" in pool.manifest:
        manifest["document_ids"] = [pool.manifest["document_ids"][i] for i in chosen]
    manifest |= {"seed": seed, "pool": {"fingerprint": pool.fingerprint, "n_samples": pool.n_samples, "drawn": chosen}}
    mask = pool.attention_mask
    return CalibrationSet(pool.input_ids[chosen], manifest, None if mask is None else mask[chosen])
