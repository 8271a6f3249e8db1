"""The entry point of ``python -m onnx_fcn`` and of the command ``onnx-fcn``."""

from onnx_fcn.process import end_at_once, repair_streams

end_at_once()  # while everything else is imported


def main() -> int:
    """Run the command; returns its exit code."""
    repair_streams()
    from onnx_fcn import cli

    return cli.main()


if __name__ == "__main__":
    import sys

    sys.exit(main())
