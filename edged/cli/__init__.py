"""The command line."""

from __future__ import annotations

import sys

from edged.machine import instructions


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad use, 78 settings that only a person can mend.

    A processor that cannot run numpy and onnxruntime is 78 too, so that systemd does not try again and again.
    """
    if lacking := instructions.missing():
        print(
            f"edged: this processor lacks {', '.join(lacking)}, which numpy and onnxruntime need: "
            "take a board with a newer one",
            file=sys.stderr,
        )
        sys.exit(78)
    from edged.cli.app import command_line
    from edged.cli.common import BadUseError

    try:
        command_line(sys.argv[1:])()
    except BadUseError as error:
        print(f"edged: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
