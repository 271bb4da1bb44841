"""Content Credentials: a signed statement inside the file that a model made this picture (C2PA, extra ``c2pa``)."""

from __future__ import annotations

import io
from pathlib import Path

from safelight.errors import LoadError
from safelight.metadata import SOFTWARE_VERSION, TRAINED_ALGORITHMIC_MEDIA
from safelight.protocol import EncodedImage

_ALGORITHM = "es256"
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}
"""A thumbnail, which is the default, would make files and times many times larger."""


class Provenance:
    """Signs with a certificate chain and its P-256 key, both PEM. Raises ``LoadError`` if they cannot be used."""

    def __init__(self, certificate: Path, private_key: Path, model: str) -> None:
        import c2pa

        try:
            info = c2pa.C2paSignerInfo(_ALGORITHM, certificate.read_bytes(), private_key.read_bytes(), None)
            self._signer = c2pa.Signer.from_info(info)
        except (OSError, c2pa.C2paError) as error:
            raise LoadError(f"{certificate} and {private_key} cannot sign Content Credentials: {error}") from error
        self._context = c2pa.Context(settings=c2pa.Settings.from_dict(_SETTINGS))
        self._new_builder = c2pa.Builder
        created = {
            "action": "c2pa.created",
            "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
            "softwareAgent": {"name": model},
        }
        self._manifest = {
            "claim_generator_info": [{"name": "Safelight", "version": SOFTWARE_VERSION}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
        }

    def signed(self, image: EncodedImage) -> EncodedImage:
        """The same picture, about three kilobytes larger."""
        signed = io.BytesIO()
        builder = self._new_builder(self._manifest, context=self._context)
        builder.sign(self._signer, image.format.media_type, io.BytesIO(image.data), signed)
        return EncodedImage(signed.getvalue(), image.format, image.seed, image.width, image.height)
