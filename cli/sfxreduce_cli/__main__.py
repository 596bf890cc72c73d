"""Run the command line as ``python -m sfxreduce_cli``."""

from sfxreduce_cli.main import main

if __name__ == "__main__":
    main()
