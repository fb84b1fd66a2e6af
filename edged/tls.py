"""TLS: towards the broker, and for the HTTP endpoint."""

from __future__ import annotations

import ssl
from pathlib import Path

from edged.mqtt.options import MqttOptions


class CredentialsError(Exception):
    """A file with credentials cannot be used; the message says which and why."""


def client_context(options: MqttOptions) -> ssl.SSLContext:
    """A new context from the files as they are now: TLS 1.2 or later, the broker's name is checked.

    Raises CredentialsError for a file that is missing, unreadable or holds something else.
    """
    ca_file = options.ca_file
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        raise CredentialsError(f"cannot use {ca_file} as trusted certificates: {_why(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.cert_file is not None:
        _load_pair(context, options.cert_file, options.key_file or options.cert_file, "client certificate")
    return context


def server_context(cert_file: Path, key_file: Path, client_ca_file: Path | None) -> ssl.SSLContext:
    """A context for a server: TLS 1.2 or later; with `client_ca_file` a client needs a certificate from there.

    Raises CredentialsError as client_context() does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_pair(context, cert_file, key_file, "certificate of the server")
    if client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca_file)
        except OSError as error:
            raise CredentialsError(f"cannot use {client_ca_file} as trusted certificates: {_why(error)}") from None
    return context


def _load_pair(context: ssl.SSLContext, cert_file: Path, key_file: Path, what: str) -> None:
    def no_passphrase() -> bytes:
        # Without this, OpenSSL would ask on the terminal and the thread would hang.
        raise CredentialsError(f"{key_file} is encrypted; the daemon needs a key without a passphrase")

    try:
        context.load_cert_chain(cert_file, key_file, password=no_passphrase)
    except OSError as error:
        raise CredentialsError(f"cannot use {cert_file} with {key_file} as {what}: {_why(error)}") from None


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key does not belong to the certificate"
        return "it is not in PEM form, or damaged"
    return error.strerror or str(error)


def read_password(options: MqttOptions) -> str | None:
    """The password as it is now. Raises CredentialsError if its file cannot be read."""
    if options.password_file is None:
        return options.password
    try:
        return options.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise CredentialsError(f"cannot read {options.password_file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CredentialsError(f"{options.password_file} is not UTF-8 text") from None
