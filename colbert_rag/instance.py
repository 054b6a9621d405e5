"""One model in this process: its files, and its weights while they are loaded."""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from colbert_rag.cache import CacheInfo
from colbert_rag.checkpoint import Checkpoint, open_checkpoint
from colbert_rag.device import TORCH_DTYPES, resolved
from colbert_rag.forks import renewed_after_fork
from colbert_rag.scoring import Scorer
from colbert_rag.settings import Settings
from colbert_rag.text_encoder import TruncationInfo
from colbert_rag.tokenizer import TextTokenizer


class Instance:
    """A model that loads its weights once, at the first use, and gives them back when asked to.

    Attributes:
        settings: What was asked for, with device and dtype resolved.
    """

    def __init__(self, settings: Settings) -> None:
        """Describe a model without loading it; `from_pretrained` is the usual way.

        Raises:
            TypeError: the settings are something else, such as the name of a checkpoint.
            ValueError: the device is not there.
        """
        if not isinstance(settings, Settings):
            raise TypeError(
                f"settings is {settings!r}, expected Settings. To open a checkpoint: "
                "ColBERT.from_pretrained(...)"
            )
        self.settings = resolved(settings)
        # Pickles carry what was asked for: a "cuda:0" that None became here may not exist there.
        self._asked = replace(settings, token=None)
        self._lock = threading.RLock()
        self._checkpoint: Checkpoint | None = None
        self._scorer: Scorer | None = None
        renewed_after_fork(self)

    @property
    def checkpoint(self) -> Checkpoint:
        """What the files say that the weights were loaded from, or else the files as they are."""
        with self._lock:
            known = self._checkpoint
            if known is None or not (self.loaded or known.files.unchanged):
                known = self._checkpoint = open_checkpoint(self.settings)
            return known

    @property
    def tokenizer(self) -> TextTokenizer:
        """Text to ids and masks, by the checkpoint's recipe; loads the model if need be."""
        return self._loaded().text_encoder.tokenizer

    @property
    def dim(self) -> int:
        """Width of a token vector."""
        return self.checkpoint.dim

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        """Float type of weights and vectors."""
        return TORCH_DTYPES[self.settings.dtype]

    @property
    def fingerprint(self) -> str:
        """Identifies loaded weights, else the files, and the recipe: equal ones may be mixed."""
        scorer = self._scorer
        return self.checkpoint.fingerprint() if scorer is None else scorer.text_encoder.fingerprint

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._scorer is not None

    def load(self) -> None:
        """Load the weights now instead of at the first call."""
        self._loaded()

    def unload(self) -> None:
        """Give the memory of weights and cached vectors back; the next call loads again."""
        with self._lock:
            self._scorer = None
        torch.cuda.empty_cache()  # nothing where no device was used

    def cache_info(self) -> CacheInfo:
        """Hits, misses, evictions and size of the document cache."""
        scorer = self._scorer
        none = CacheInfo(limit=self.settings.document_cache or 0)
        return none if scorer is None else scorer.cache.info()

    def truncation_info(self) -> TruncationInfo:
        """How many texts were encoded since the model was loaded, and how many of them were cut."""
        scorer = self._scorer
        return TruncationInfo() if scorer is None else scorer.text_encoder.truncation_info()

    def _loaded(self) -> Scorer:
        scorer = self._scorer
        if scorer is not None:
            return scorer
        with self._lock:
            if self._scorer is None:
                self._scorer = Scorer.of(self.checkpoint, self.settings)
            return self._scorer

    def renew(self) -> None:
        """Be usable in a forked child, where another thread may have been loading."""
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        """Name, place and state."""
        state = "loaded" if self.loaded else "not loaded"
        return (
            f"{type(self).__name__}({self.settings.checkpoint!r}, device={self.device!r}, "
            f"dtype={self.settings.dtype!r}, {state})"
        )
