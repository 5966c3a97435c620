"""The commands of `reslib`, one module each: `add_arguments(parser)` and `main(arguments) -> exit code`."""
