"""TLS towards the broker."""

from __future__ import annotations

import ssl

from edged.mqtt.options import MqttOptions


class CredentialsError(Exception):
    """A file with credentials cannot be used; the message says which and why."""


def make_context(options: MqttOptions) -> ssl.SSLContext:
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
        key_file = options.key_file or options.cert_file

        def no_passphrase() -> bytes:
            # Without this, OpenSSL would ask on the terminal and the thread would hang.
            raise CredentialsError(f"{key_file} is encrypted; the daemon needs a key without a passphrase")

        try:
            context.load_cert_chain(options.cert_file, key_file, password=no_passphrase)
        except OSError as error:
            raise CredentialsError(
                f"cannot use {options.cert_file} with {key_file} as client certificate: {_why(error)}"
            ) from None
    return context


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
