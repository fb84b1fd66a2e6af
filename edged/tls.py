"""TLS contexts: for the connection to the broker, and for the HTTP endpoint."""

from __future__ import annotations

import ssl
from pathlib import Path


class CredentialsError(Exception):
    """A file with credentials cannot be used; the message says which file and why."""


def client_context(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None, alpn: str | None = None
) -> ssl.SSLContext:
    """A new context from the present content of the files: TLS 1.2 or later, and the server's name is checked.

    `ca_file`: trusted certificates; None: those of the system. `cert_file`, `key_file`: the client's own certificate,
    if it has one. `alpn`: the application protocol to offer (RFC 7301). Raises CredentialsError for a file that is
    missing, unreadable or not in PEM form.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        raise CredentialsError(f"cannot use {ca_file} as trusted certificates: {_reason(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Set by default since Python 3.13: it refuses authorities without key usage, which `openssl req -x509` makes. Such
    # an authority is no less trusted: the operator names it.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    if cert_file is not None:
        _load_pair(context, cert_file, key_file or cert_file, "client certificate")
    return context


def server_context(cert_file: Path, key_file: Path, client_ca_file: Path | None) -> ssl.SSLContext:
    """A new context for a server: TLS 1.2 or later.

    `client_ca_file`: authorities of client certificates, which are then required. Raises CredentialsError as
    client_context() does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_pair(context, cert_file, key_file, "certificate of the server")
    if client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca_file)
        except OSError as error:
            raise CredentialsError(f"cannot use {client_ca_file} as trusted certificates: {_reason(error)}") from None
    return context


def _load_pair(context: ssl.SSLContext, cert_file: Path, key_file: Path, purpose: str) -> None:
    def no_passphrase() -> bytes:
        # Without this, OpenSSL asks on the terminal and the thread hangs.
        raise CredentialsError(f"{key_file} is encrypted; the daemon needs a key without a passphrase")

    try:
        context.load_cert_chain(cert_file, key_file, password=no_passphrase)
    except OSError as error:
        raise CredentialsError(f"cannot use {cert_file} with {key_file} as {purpose}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key does not belong to the certificate"
        return "it is not in PEM form, or damaged"
    return error.strerror or str(error)
