"""The scales of an int8 KV cache with its own known answers, kept in the state directory for each package.

They are measured at the first load with an int8 cache, and used at each later one. A file that is cut or edited, or was
made for another package, text or version, is refused, and the scales are measured again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

import edged
from edged.checked_json import read_checked, write_checked
from edged.engine import ort
from edged.engine.known_answers import KnownAnswers
from edged.engine.kv_layout import KVLayout
from edged.engine.package import Package

log = structlog.get_logger(__name__)

SCALES = "kv_scales"
"""Name of the folder under state_dir."""
_MORE_BYTES = 1 << 20
"""Of a file beside the scales themselves."""


@dataclass(frozen=True)
class KVScales:
    """`scales`: by name of the graph's input, [heads, size].

    `known`: the package's known answers with the margins that they have on this cache, None for a package without any.
    """

    scales: dict[str, NDArray[np.float32]]
    known: KnownAnswers | None

    @property
    def digest(self) -> bytes:
        """32 bytes that stand for the scales: keys and values are the same numbers under the same scales alone."""
        digest = hashlib.sha256()
        for name, scale in self.scales.items():
            digest.update(name.encode() + repr(scale.shape).encode() + scale.tobytes())
        return digest.digest()


@dataclass(frozen=True)
class Source:
    """What scales are made of: digests of the package, its known answers and the text's tokens, and versions."""

    fingerprint: str
    known_answers: str
    text: str
    edged: str
    onnxruntime: str

    @classmethod
    def of(cls, package: Package, known: KnownAnswers | None, ids: list[int]) -> Source:
        """The source of scales that are measured now. Raises OSError."""
        answers = "" if known is None else known.model_dump_json()
        return cls(
            package.fingerprint().hex(),
            hashlib.sha256(answers.encode()).hexdigest(),
            hashlib.sha256(repr(ids).encode()).hexdigest(),
            edged.__version__,
            ort.__version__,
        )


class KeptScales:
    """The scales in one folder, a file for each package."""

    def __init__(self, folder: Path, may_add: bool) -> None:
        """`may_add`: for the daemon; commands may run as another user, and only read."""
        self._folder = folder
        self.may_add = may_add

    def find(self, package: Package, source: Source) -> KVScales | None:
        """The scales that were made of this source. A file that does not hold them is refused, and that is logged."""
        path = self._path(source)
        try:
            return _parse(path, package, source)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.refuse(source, " ".join(str(error).split())[:200])
            return None

    def refuse(self, source: Source, reason: str) -> None:
        """Log that the file of this source is not used."""
        hint = "the scales are measured again"
        log.warning("kv_scales_refused", file=self._path(source).name, reason=reason, hint=hint)

    def add(self, package: Package, source: Source, made: KVScales) -> None:
        """Keep the scales, and forget those of packages that are gone or were replaced. A failure is logged."""
        if not self.may_add:
            return
        numbers = b"".join(np.ascontiguousarray(scale, "<f4").tobytes() for scale in made.scales.values())
        document = {
            "package": str(package.folder.resolve()),
            "source": asdict(source),
            "scales": base64.b64encode(numbers).decode(),
            "known_answers": None if made.known is None else made.known.model_dump(),
        }
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._forget_gone(document["package"])
            write_checked(self._path(source), document)
        except OSError as error:
            hint = "they are measured again at the next load: make state_dir writable, or free some space"
            reason = (error.strerror or str(error)).lower()
            log.warning("kv_scales_not_kept", model=package.name, reason=reason, hint=hint)
        else:
            log.info("kv_scales_kept", model=package.name)

    def _path(self, source: Source) -> Path:
        return self._folder / f"{source.fingerprint[:32]}.json"

    def _forget_gone(self, replaced: Any) -> None:
        for path in self._folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                package = json.loads(path.read_bytes())["package"]
                if package == replaced or not Path(package).is_dir():
                    path.unlink()


def _parse(path: Path, package: Package, source: Source) -> KVScales | None:
    """None where there is no file. Raises OSError, and DamagedError and others where it is not what it should be."""
    planes = KVLayout.of(package).planes
    sizes = [plane.heads * plane.size for plane in planes]
    most = 6 * sum(sizes) + _MORE_BYTES  # base64 of 4 bytes each
    document = read_checked(path, most)
    if document is None:
        return None
    wanted = asdict(source)
    differs = [name for name, value in document["source"].items() if wanted.get(name) != value]
    if differs or document["source"].keys() != wanted.keys():
        raise ValueError(f"it was made with another {', '.join(differs).replace('_', ' ') or 'edged'}")
    numbers = np.frombuffer(base64.b64decode(document["scales"], validate=True), "<f4").astype(np.float32)
    if len(numbers) != sum(sizes) or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"its scales must be {sum(sizes)} numbers above 0")
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    scales = {plane.past: part.reshape(plane.heads, plane.size) for plane, part in zip(planes, parts, strict=True)}
    known = document["known_answers"]
    return KVScales(scales, None if known is None else KnownAnswers.model_validate(known))
